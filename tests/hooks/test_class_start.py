# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin at mean class tokens: against the stock backbone run by hand, and what is refused."""

import sys
from pathlib import Path

import pytest
import torch
from cases import BACKBONE
from mmengine.config import Config

from mmpetl.hooks.class_start import ClassStartHook, class_tokens, gather, prompted, set_prompts
from mmpetl.training.run import build_runner

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy_run  # noqa: E402

VPT = "dict(type='VPT', num_tokens=2, drop_rate=0.1)"


class Sample:

    def __init__(self, *labels):
        self.gt_label = torch.tensor(labels)


class Recognizer(torch.nn.Module):
    """What class_tokens asks of a model."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def data_preprocessor(self, batch, training):
        return batch

    def forward(self, inputs, data_samples, mode):
        return self.backbone(inputs)


def runner_of(folder, petl=VPT, hook='', extra=''):
    config = toy_run.write(folder, f"model['backbone'].update(type='mmpetl.VisionTransformer', petl=[{petl}])\n"
                           f"custom_hooks = [dict(type='mmpetl.ClassStartHook'{hook})]\n{extra}")
    cfg = Config.fromfile(config)
    cfg.work_dir = str(folder / 'out')
    return build_runner(cfg)


@pytest.mark.parametrize('take', ['final', 'before', 'after'])
@pytest.mark.parametrize('petl', [VPT, "dict(type='E2VPT', num_tokens=2, num_kv_tokens=1, segments=4)"])
def test_prompts_are_the_means_of_the_base_by_class(tmp_path, take, petl):
    runner = runner_of(tmp_path, petl, f", take='{take}'", 'train_dataloader.update(drop_last=True, batch_size=7)\n')
    runner._train_loop = runner.build_train_loop(runner._train_loop)  # as Runner.train does before its hooks
    hook = next(h for h in runner.hooks if isinstance(h, ClassStartHook))
    hook.before_train(runner)
    model = runner.model
    from mmpretrain.models import VisionTransformer
    cfg = Config.fromfile(tmp_path / 'toy.py').model.backbone
    stock = VisionTransformer(**{k: v for k, v in cfg.items() if k not in ('type', 'petl')})
    stock.load_state_dict({k: v for k, v in model.backbone.state_dict().items() if not k.startswith('petl.')})
    stock.eval()
    taken = []
    stock.layers[0].register_forward_pre_hook(lambda m, args: taken.append(args[0][:, 0]))
    for layer in stock.layers:
        layer.register_forward_hook(lambda m, args, out: taken.append(out[:, 0]))
    dataset = runner.train_dataloader.dataset
    samples = [dataset[i] for i in range(len(dataset))]
    with torch.no_grad():
        data = model.data_preprocessor(dict(inputs=torch.stack([s['inputs'] for s in samples]),
                                            data_samples=[s['data_samples'] for s in samples]))
        taken.append(stock(data['inputs'])[0])
    labels = torch.cat([s['data_samples'].gt_label for s in samples])
    assert len(labels) == 24  # the last batch too, whatever training drops
    means = torch.stack([torch.stack([t[labels == c].mean(0) for c in (0, 1)]) for t in taken])
    method = next(iter(model.backbone.petl.values()))
    for i in range(2):
        expected = means[dict(final=3, before=i, after=i + 1)[take]]
        torch.testing.assert_close(method.prompts[str(i)].detach(), expected, atol=1e-5, rtol=1e-5)
    assert model.training and model.backbone.petl.enabled


def test_it_trains_and_resumes_from_its_own_values(tmp_path):
    runner = runner_of(tmp_path, extra="train_cfg['max_epochs'] = 1\n")
    runner.train()
    before = {k: v.clone() for k, v in runner.model.backbone.petl.state_dict().items()}
    again = runner_of(tmp_path, extra=f"load_from = r'{tmp_path}/out/epoch_1.pth'\n")
    again.load_or_resume()
    again._train_loop = again.build_train_loop(again._train_loop)
    next(h for h in again.hooks if isinstance(h, ClassStartHook)).before_train(again)
    for key, value in again.model.backbone.petl.state_dict().items():
        assert torch.equal(value, before[key])


def test_more_classes_than_prompts_are_grouped():
    """Six classes around three points: a prompt for each point, at the mean of its classes."""
    torch.manual_seed(0)
    points = 10 * torch.eye(3, dtype=torch.float64)
    tokens = (points.repeat(2, 1)[:, None] + .1 * torch.randn(6, 4, 3)).double()
    found = gather(tokens, 3)
    expected = (tokens[:3] + tokens[3:]) / 2
    order = found[:, -1].argmax(1)
    torch.testing.assert_close(found, expected[order])
    assert torch.equal(gather(tokens, 6), tokens) and sorted(order.tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match='6 classes cannot start num_tokens=7 prompts'):
        gather(tokens, 7)


def test_without_a_class_token_the_mean_stands_for_it():
    model = BACKBONE['videomae'].build([dict(type='VPT', num_tokens=2)])
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].mean(1)))
    batch = [dict(inputs=BACKBONE['videomae'].inputs(), data_samples=[Sample(0), Sample(0)])]
    tokens = class_tokens(Recognizer(model), batch, 1)
    torch.testing.assert_close(tokens[0, 0], seen[0].mean(0).double(), atol=1e-6, rtol=1e-5)
    set_prompts(model.petl.vpt, tokens.expand(2, -1, -1), 'before')
    torch.testing.assert_close(model.petl.vpt.prompts['0'][1], tokens[0, 0].float())
    with pytest.raises(ValueError, match='no training sample of class 1'):
        class_tokens(Recognizer(model), batch, 2)
    batch[0]['data_samples'][1] = Sample(0, 1)
    with pytest.raises(ValueError, match='several labels'):
        class_tokens(Recognizer(model), batch, 2)
    with pytest.raises(ValueError, match='are empty'):
        class_tokens(Recognizer(model), [], 2)


@pytest.mark.parametrize('on, petl, words', [
    ('vit', [dict(type='LoRA', rank=2)], 'exactly one method with prompts .* which holds LoRA'),
    ('vit', [], 'which holds no method'),
    ('vit', [dict(type='VPT', num_tokens=2, project=4)], 'leave project of VPT out'),
    ('swin', [dict(type='VPT', num_tokens=2)], 'one width are needed, the blocks of this backbone have')])
def test_refusals(on, petl, words):
    with pytest.raises(ValueError, match=words):
        prompted(BACKBONE[on].build(petl))


def test_an_unknown_take():
    with pytest.raises(ValueError, match="unknown take 'last'"):
        ClassStartHook('last')


def test_the_procedure_refuses_it(tmp_path):
    runner = runner_of(tmp_path, "dict(type='E2VPT', num_tokens=2, num_kv_tokens=1, segments=4)",
                       extra="train_cfg = dict(type='mmpetl.E2VPTLoop', max_epochs=1)\n")
    with pytest.raises(ValueError, match='remove ClassStartHook from custom_hooks'):
        runner.train()
