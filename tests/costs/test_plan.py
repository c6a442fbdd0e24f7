# SPDX-License-Identifier: Apache-2.0
"""mmpetl plan against closed formulas, real files and real forward passes."""

import json

import pytest
import torch
from cases import BACKBONE, BACKBONES, CASE, METHODS, ROW, perturb
from torch import nn
from toy_model import write_adapter, write_config

import mmpetl
from mmpetl.commands.main import main
from mmpetl.costs.memory import on_meta, saved_bytes
from mmpetl.costs.plan import batch_size, input_shape, macs, optimizer_states, plan
from mmpetl.registry import MODELS
from mmpetl.training.build import read_config

LORA = [dict(type='LoRA', rank=2, ops='qv')]


def test_macs_of_vit_base():
    """17.56 GMAC with attention; a counter that sees no attention says 16.85."""
    with on_meta():
        petl = [dict(type='LoRA', rank=8, ops='qv')]
        vit = MODELS.build(dict(type='mmpetl.VisionTransformer', arch='base', out_type='raw', petl=petl))
        short = MODELS.build(dict(type='mmpetl.VisionTransformer', arch='base', petl=petl))
    n, c, depth = 197, 768, 12
    trunk = 196 * 768 * c + depth * (12 * n * c * c + 2 * n * n * c)
    assert round(trunk / 1e9, 2) == 17.56
    assert macs(vit, (3, 224, 224)) == trunk + depth * 2 * 2 * n * c * 8
    assert round((trunk - depth * 2 * n * n * c) / 1e9, 2) == 16.85
    with vit.petl.disabled():
        assert macs(vit, (3, 224, 224)) == trunk
    # read at the class token alone, the last block makes one query, and the rest of it sees one token
    unread = (n - 1) * (2 * n * c + 10 * c * c + 2 * c * 8)
    assert macs(short, (3, 224, 224)) == macs(vit, (3, 224, 224)) - unread


@pytest.mark.parametrize('case', METHODS, ids=[c.name for c in METHODS])
def test_every_method_can_be_planned(case):
    backbone = ROW[case.on[-1]]
    with on_meta():
        model = backbone.build(case.petl)
    assert macs(model, backbone.shape) > 0
    model.train()
    assert saved_bytes(model, torch.empty(2, *backbone.shape, device='meta')) > 0
    assert all(p.requires_grad for p in model.petl.parameters())


@pytest.mark.parametrize('backbone', BACKBONES, ids=[b.name for b in BACKBONES])
def test_a_frozen_trunk_keeps_nothing(backbone):
    with on_meta():
        model = backbone.build()
    model.train()
    assert saved_bytes(model, torch.empty(2, *backbone.shape, device='meta')) == 0


def test_saved_bytes_of_known_modules():
    x = torch.empty(4, 8, device='meta')
    with on_meta():
        module = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 2))
    # input of the first linear is x itself; the sigmoid's output is kept once although two operations need it
    assert saved_bytes(module, x) == 4 * 4 * 16
    module[0].requires_grad_(False)
    assert saved_bytes(module, x) == 4 * 4 * 16
    module[2].requires_grad_(False)
    assert saved_bytes(module, x) == 0


@pytest.mark.parametrize('name', ['vit', 'videomae'])
def test_saved_bytes_equal_those_of_a_real_pass(name):
    """The fused kernel of the CPU keeps what is counted for it, besides two random seeds."""
    backbone = next(b for b in BACKBONES if b.name == name)
    with on_meta():
        planned = backbone.build([dict(type='LoRA', rank=2, ops='qkv')])
    model = backbone.build([dict(type='LoRA', rank=2, ops='qkv')])
    perturb(model.petl)
    planned.train(), model.train()
    x, kept = backbone.inputs(8), {}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    real = sum(t.untyped_storage().nbytes() for t in kept.values())
    assert abs(saved_bytes(planned, torch.empty(8, *backbone.shape, device='meta')) - real) <= 0.02 * real


def test_what_recomputation_holds_counts():
    """SynQT recomputes its query path from the normed tokens of every block, which autograd does not see."""
    backbone, kept = BACKBONE['vit'], {}
    for recompute in (True, False):
        with on_meta():
            model = backbone.build([dict(CASE['SynQT'].petl[0], checkpoint=recompute)])
        model.train()
        kept[recompute] = saved_bytes(model, torch.empty(8, *backbone.shape, device='meta'))
    tokens = 4 * 8 * 17 * 32
    assert 3 * tokens <= kept[True] < kept[False]


def test_checkpointing_keeps_less():
    kept = []
    for with_cp in (False, True):
        with on_meta():
            model = BACKBONES[0].build(LORA, with_cp=with_cp)
        model.train()
        kept.append(saved_bytes(model, torch.empty(8, 3, 32, 32, device='meta')))
    assert kept[1] < 0.5 * kept[0]


def test_a_config(tmp_path, capsys):
    config, path = write_config(tmp_path, LORA), tmp_path / 'a.safetensors'
    model = write_adapter(config, path)
    (tmp_path / 'base.pth').unlink()  # nothing is loaded
    p = plan(read_config(str(config)), 'toy')
    counted = mmpetl.summary(model)
    assert (p.without_head, p.head, p.total,
            p.base) == (counted.without_head, counted.head, counted.total, counted.base) == (
                512, 99, 611, sum(t.numel() for n, t in model.backbone.named_parameters() if 'petl' not in n))
    assert abs(p.adapter_bytes - path.stat().st_size) <= 0.1 * path.stat().st_size
    assert p.input == (3, 32, 32) and p.batch == 4
    assert p.weight_bytes == 4 * sum(t.numel() for t in model.state_dict().values())
    assert (p.gradient_bytes, p.optimizer_bytes) == (4 * 611, 8 * 611)
    other = write_config(tmp_path, [dict(type='AdaptFormer', mid_dims=4)], 'other.py')
    capsys.readouterr()
    assert main(['plan', str(config), str(other), '--json']) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [s['config'] for s in shown] == ['toy', 'other'] and shown[0]['gmac'] == p.gmac
    assert main(['plan', str(config), str(other)]) == 0
    text = capsys.readouterr().out
    assert "LoRA(rank=2, ops='qv')" in text and 'AdaptFormer(mid_dims=4)' in text and '512' in text


def test_what_the_pipeline_says():
    from mmengine.config import ConfigDict
    backbone = next(b for b in BACKBONES if b.name == 'video_swin').build()
    pipeline = [dict(type='SampleFrames', clip_len=8, num_clips=2), dict(type='Resize', scale=(-1, 256)),
                dict(type='mmpetl.ViewCrops', crop_size=112), dict(type='Resize', scale=(64, 48), keep_ratio=False)]
    dataset = dict(type='X', dataset=dict(pipeline=pipeline, num_repeats=2))
    cfg = ConfigDict(train_dataloader=dict(batch_size=3, dataset=dataset))
    assert input_shape(cfg, backbone) == (3, 8, 48, 64)
    assert batch_size(cfg) == 12
    image = BACKBONES[0].build()
    assert input_shape(ConfigDict(), image) == (3, 32, 32) and batch_size(ConfigDict()) == 1


@pytest.mark.parametrize('optimizer, states', [(dict(type='SGD', momentum=0.9), 1), (dict(type='SGD'), 0),
                                               (dict(type='AdamW'), 2)])
def test_optimizers(optimizer, states):
    from mmengine.config import ConfigDict
    assert optimizer_states(ConfigDict(optim_wrapper=dict(optimizer=optimizer))) == (states, [])
    assert 'Odd' in optimizer_states(ConfigDict(optim_wrapper=dict(optimizer=dict(type='Odd'))))[1][0]


def test_no_text_features_are_read(tmp_path):
    from mmpetl.training.build import build_model
    config = write_config(tmp_path, LORA)
    cfg = read_config(str(config))
    cfg.model.head = dict(type='mmpetl.ZeroShotHead', text_features='nowhere.npz')
    assert plan(cfg).head == 0
    assert cfg.model.head.text_features == 'nowhere.npz', 'the config itself stays as it is'
    with pytest.raises(FileNotFoundError, match='nowhere.npz'):
        build_model(cfg)


def test_refusals(tmp_path, capsys):
    config = write_config(tmp_path, [dict(type='LoRa')])
    assert main(['plan', str(config)]) == 1
    assert "did you mean 'LoRA'" in capsys.readouterr().err
    config = write_config(tmp_path, LORA)
    assert main(['plan', str(config), '--input', '4']) == 1
    assert 'H W or T H W' in capsys.readouterr().err
    assert main(['plan', str(config), '--input', '1', '32', '32']) == 1
    assert 'toy: the backbone does not run on an input of shape (3, 1, 32, 32)' in capsys.readouterr().err
    assert main(['plan', str(tmp_path / 'toi.py')]) == 1
    assert "did you mean 'toy.py'" in capsys.readouterr().err


def test_compare_ranks_what_fits(tmp_path, capsys):
    """The largest batch is right: one more does not fit, and the plan of that very batch says so too."""
    config = write_config(tmp_path, LORA)
    main(['plan', str(config), '--budget', '2MB', '--methods', 'linear', 'LoRA', 'full', 'apt', '--json'])
    said = json.loads(capsys.readouterr().out)
    choices = said['choices']
    assert {c['method'] for c in choices} | set(said['refused']) == {'linear', 'LoRA', 'full', 'APT'}
    assert {(c['method'], c['memory']) for c in choices} >= {(m, f) for m in ('linear', 'LoRA', 'full')
                                                            for f in ('standard', 'light', 'lightest')}
    largest = {(c['method'], c['memory']): c['largest_batch'] for c in choices}
    assert largest['LoRA', 'lightest'] > largest['LoRA', 'standard'] > largest['full', 'standard'] > 0
    order = [float('inf') if c['largest_batch'] is None else c['largest_batch'] for c in choices]
    assert order == sorted(order, reverse=True)
    fits = largest['full', 'standard']
    cfg = read_config(str(config), {'model.backbone.petl': [], 'model.backbone.tune': ['*']})
    needed = []
    for batch in (fits, fits + 1):
        cfg.train_dataloader.batch_size = batch
        needed.append(plan(cfg).memory_bytes)
    assert needed[0] <= 2 << 20 < needed[1]


@pytest.mark.parametrize('given, said', [
    (['--budget', 'much'], "--budget 'much': expected a number with MB or GB"),
    (['--budget', '0GB'], "--budget '0GB': expected a number"),
    (['--methods', 'LoRAA'], "--methods 'LoRAA' is unknown; did you mean 'LoRA'"),
])
def test_compare_names_what_is_wrong(tmp_path, capsys, given, said):
    assert main(['plan', str(write_config(tmp_path, LORA)), *given]) and said in capsys.readouterr().err
