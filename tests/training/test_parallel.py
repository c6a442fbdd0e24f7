# SPDX-License-Identifier: Apache-2.0
"""Strategies for several processes: what they refuse, and what FSDP makes a unit. Training:
tests/tools/test_video_runs.py."""

import importlib.util

import pytest
from cases import BACKBONE
from mmengine.config import Config
from mmengine.registry import FUNCTIONS, STRATEGIES
from toy_run import ROOT

import mmpetl  # noqa: F401
from mmpetl.clean_errors import run_cleanly
from mmpetl.training import config, flags, run
from mmpetl.training.parallel import DeepSpeedStrategy, FSDPStrategy


@pytest.mark.parametrize('name', list(BACKBONE))
def test_blocks_are_the_units(name):
    """All blocks and nothing else; a frozen base gives units without trainable parameters."""
    model = BACKBONE[name].build([dict(type='LoRA', rank=2)])
    policy = FUNCTIONS.get('mmpetl.wrap_blocks')
    units = [m for m in model.modules() if policy(m, recurse=False, nonwrapped_numel=0)]
    assert units == model.petl.blocks and policy(model, recurse=True, nonwrapped_numel=0)
    assert not any(p.requires_grad for unit in units for p in unit.parameters())


def test_fsdp_refuses_what_would_go_wrong():
    with pytest.raises(
            ValueError, match='use_orig_params=False gives frozen and trainable parameters one flat parameter'):
        FSDPStrategy(model_wrapper=dict(use_orig_params=False))
    with pytest.raises(ValueError, match="state_dict_cfg must be 'full'"):
        FSDPStrategy(state_dict_cfg='local')


def test_deepspeed_is_named_when_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(
            ModuleNotFoundError,
            match='needs the package deepspeed, which is not installed: run pip install deepspeed'):
        STRATEGIES.build(dict(type='mmpetl.DeepSpeedStrategy'))


@pytest.mark.parametrize('options, message', [
    (dict(zero_optimization=dict(stage=3)), 'stage 3 shares out the base'),
    (dict(bf16=dict(enabled=True)), 'bf16 casts the frozen base'),
])
def test_deepspeed_refuses_what_changes_the_base(monkeypatch, options, message):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
    with pytest.raises(ValueError, match=message):
        DeepSpeedStrategy(**options)


@pytest.mark.parametrize('kind', ['fsdp', 'deepspeed'])
def test_published_recipes_take_a_strategy(tmp_path, monkeypatch, capsys, kind):
    """The fragments go beside any recipe; one process is told to start several, and tests without a strategy."""
    recipe = ROOT / 'configs/vpetl/patt-kv-adaptformer_video-swin-base_k400-in22k-pre_1xb16-8x2-coslr-70e_hmdb51.py'
    path = tmp_path / 'sharded.py'
    path.write_text(f'_base_ = [{str(recipe)!r}, {str(ROOT / "configs/_base_/strategies" / kind)!r} ".py"]\n'
                    'model = dict(backbone=dict(init_cfg=None))\n')  # a base that is missing is said first
    cfg = Config.fromfile(path)
    assert cfg.runner_type == 'FlexibleRunner' and STRATEGIES.get(cfg.strategy.type) is not None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('mmpetl.training.parallel.importlib.util.find_spec', lambda name: None
                        if name == 'deepspeed' else object())
    assert run_cleanly(run.train, [str(path)]) == 1
    message = capsys.readouterr().err
    assert ('several processes: use bash tools/dist_train.sh'
            if kind == 'fsdp' else 'needs the package deepspeed') in message
    (tmp_path / 'weights.safetensors').write_bytes(b'\x02' + bytes(7) + b'{}')
    tested = config.test_config(flags.test_parser().parse_args([str(path), str(tmp_path / 'weights.safetensors')]))
    assert 'strategy' not in tested and 'runner_type' not in tested
    several = config.test_config(flags.test_parser().parse_args(
        [str(path), str(tmp_path / 'weights.safetensors'), '--launcher', 'pytorch']))
    assert ('strategy' in several) == (kind == 'fsdp')
