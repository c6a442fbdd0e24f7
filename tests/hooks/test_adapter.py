# SPDX-License-Identifier: Apache-2.0
"""Adapter files through MMEngine's Runner: every way in gives base and adapter, or refuses."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from toy_run import write

import mmpetl
from mmpetl.training.run import build_runner
from mmpetl.weights import adapter_file

PETL = """
model = dict(
    _delete_=False, type='ImageClassifier',
    backbone=dict(_delete_=True, type='mmpetl.VisionTransformer', img_size=16, patch_size=8,
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32), petl=[dict(type='LoRA', rank=2)],
        init_cfg=dict(type='Pretrained', checkpoint=r'{base}')))
custom_hooks = [dict(type='mmpetl.AdapterHook'), dict(type='mmpetl.GradientAuditHook')]
optim_wrapper = dict(constructor='mmpetl.TrainableOptimWrapperConstructor', optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, save_best='auto'))
"""


def _base(path, seed=0):
    from mmpretrain.models import VisionTransformer
    torch.manual_seed(seed)
    trunk = VisionTransformer(
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32), img_size=16, patch_size=8)
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save(trunk.state_dict(), path)
    return path


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A finished training run: config file, work dir, last validation metrics."""
    folder = tmp_path_factory.mktemp('run')
    base = _base(folder / 'base.pth')
    config = folder / 'petl.py'
    toy = write(folder)
    config.write_text(f"_base_ = './{toy.name}'\n" + PETL.format(base=base))
    cfg = Config.fromfile(config)
    cfg.work_dir = str(folder / 'work')
    runner = build_runner(cfg)
    metrics = []
    runner.register_hook(_Keep(metrics), priority='LOWEST')
    runner.train()
    return dict(folder=folder, config=config, base=base, work=folder / 'work', metrics=metrics[-1], model=runner.model)


class _Keep(Hook):

    def __init__(self, into):
        self.into = into

    def after_val_epoch(self, runner, metrics=None):
        self.into.append(dict(metrics))


class _Stop(Hook):
    """Ends a run in its second epoch, as a kill would."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.epoch == 1 and batch_idx == 1:
            raise InterruptedError


def _cfg(run, **changes):
    cfg = Config.fromfile(run['config'])
    cfg.work_dir = str(run['folder'] / 'again')
    cfg.merge_from_dict(changes)
    return cfg


def _scores(model, run):
    """Scores of all pictures."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loader = Runner.build_dataloader(_cfg(run).test_dataloader)
    model.eval()
    with torch.no_grad():
        return torch.cat([torch.stack([s.pred_score for s in model.test_step(batch)]) for batch in loader])


def test_file_holds_what_was_trained(run):
    tensors, header = adapter_file.load(run['work'] / 'adapter.safetensors')
    assert all('.petl.' in k or k.startswith('head.') for k in tensors)
    assert header['methods'] == [
        dict(type='LoRA', rank=2, ops='qv', alpha=None, drop_rate=0., init='kaiming', rank_stabilized=False, layers=None, name='lora')]
    assert header['base']['id'] == 'base.pth' and len(header['base']['fingerprint']) == 64
    assert header['classes'] == ['dark', 'light']
    assert header['metrics'] == pytest.approx(run['metrics'])
    assert header['counts']['petl'] == 2 * 2 * 2 * 2 * 16
    json.dumps(header)
    assert (run['work'] / 'best_adapter.safetensors').is_file()


def test_checkpoints_are_small_but_complete(run):
    checkpoint = torch.load(next(run['work'].glob('epoch_2.pth')), weights_only=False)
    assert all('.petl.' in k or k.startswith('head.') for k in checkpoint['state_dict'])
    assert len(checkpoint['optimizer']['param_groups'][0]['params']) == len(checkpoint['state_dict'])


@pytest.mark.parametrize('name', ['adapter.safetensors', 'epoch_2.pth'])
def test_runner_test_equals_last_validation(run, name):
    runner = build_runner(_cfg(run, load_from=str(run['work'] / name)))
    assert runner.test() == pytest.approx(run['metrics'], abs=0)
    assert torch.equal(_scores(runner.model, run), _scores(run['model'], run))


@pytest.mark.filterwarnings('ignore')
def test_upstream_inferencer_and_get_model(run):
    from mmpretrain import ImageClassificationInferencer, get_model
    adapter = str(run['work'] / 'adapter.safetensors')
    expected = _scores(run['model'], run)
    assert torch.equal(_scores(get_model(str(run['config']), pretrained=adapter, device='cpu'), run), expected)
    picture = str(next((run['folder'] / 'data').rglob('*.png')))
    by_name = ImageClassificationInferencer(str(run['config']), pretrained=adapter, device='cpu')(picture)[0]
    ours = mmpetl.infer(str(run['config']), adapter, picture, device='cpu')[0]
    assert ours['pred_score'] == by_name['pred_score']


def test_wrong_base_is_refused(run):
    other = _base(run['folder'] / 'other.pth', seed=1)
    changed = {'model.backbone.init_cfg.checkpoint': str(other)}
    runner = build_runner(_cfg(run, load_from=str(run['work'] / 'adapter.safetensors'), **changed))
    with pytest.raises(ValueError, match=r"wrong base.*'base.pth'.*other.pth"):
        runner.test()


def test_other_methods_and_heads_are_refused(run):
    adapter = str(run['work'] / 'adapter.safetensors')
    runner = build_runner(
        _cfg(run, load_from=adapter, **{'model.backbone.petl': [dict(type='AdaptFormer', mid_dims=4)]}))
    with pytest.raises(ValueError, match='the adapter holds LoRA, the model has AdaptFormer'):
        runner.test()
    runner = build_runner(_cfg(run, load_from=adapter, **{'model.head.num_classes': 5}))
    with pytest.raises(ValueError, match='number of classes'):
        runner.test()


def test_foreign_weights_are_refused(run):
    path = run['folder'] / 'foreign.pth'
    torch.save({'state_dict': {'some.weight': torch.zeros(3, 3)}}, path)
    with pytest.raises(ValueError):
        build_runner(_cfg(run, load_from=str(path))).test()


def test_resume_is_exact(run):
    """Stopped after one epoch and resumed, a run ends with the same bits."""
    cfg = _cfg(run)
    cfg.work_dir = str(run['folder'] / 'resumed')
    runner = build_runner(cfg)
    runner.register_hook(_Stop())
    with pytest.raises(InterruptedError):
        runner.train()
    cfg = _cfg(run, resume=True)
    cfg.work_dir = str(run['folder'] / 'resumed')
    build_runner(cfg).train()
    tensors, _ = adapter_file.load(run['work'] / 'adapter.safetensors')
    again, _ = adapter_file.load(run['folder'] / 'resumed' / 'adapter.safetensors')
    assert tensors.keys() == again.keys()
    assert all(torch.equal(tensors[k], again[k]) for k in tensors)


def test_averaged_weights_go_through(run):
    cfg = _cfg(run, **{'train_cfg.max_epochs': 1})
    cfg.work_dir = str(run['folder'] / 'ema')
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='EMAHook', momentum=0.5)]
    build_runner(cfg).train()
    checkpoint = torch.load(run['folder'] / 'ema' / 'epoch_1.pth', weights_only=False)
    assert all('.petl.' in k or 'head.' in k or k == 'steps' for k in checkpoint['ema_state_dict'])
    cfg = _cfg(run, resume=True)
    cfg.work_dir = str(run['folder'] / 'ema')
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='EMAHook', momentum=0.5)]
    build_runner(cfg).train()


def test_bare_backbone_takes_the_adapter_of_a_classifier(run):
    cfg = _cfg(run)
    backbone = mmpetl.registry.MODELS.build(cfg.model.backbone)
    backbone.load_state_dict(torch.load(run['base'], weights_only=True), strict=False)
    mmpetl.load_adapter(backbone, str(run['work'] / 'adapter.safetensors'))
    trained = run['model'].backbone.state_dict()
    assert all(torch.equal(v, trained[k]) for k, v in backbone.state_dict().items())


def test_plain_model_gets_the_methods_from_the_header(run):
    from mmpretrain.registry import MODELS
    cfg = _cfg(run)
    cfg.model.backbone.update(type='mmpretrain.VisionTransformer')
    del cfg.model.backbone['petl'], cfg.model.backbone['init_cfg']
    cfg.model.data_preprocessor = cfg.data_preprocessor
    model = MODELS.build(cfg.model)
    model.backbone.load_state_dict(torch.load(run['base'], weights_only=True))
    mmpetl.load_adapter(model, str(run['work'] / 'adapter.safetensors'))
    assert torch.equal(_scores(model, run), _scores(run['model'], run))
