# SPDX-License-Identifier: Apache-2.0
"""The toy run for tests of the feature cache. Loaded by path, tests are no package."""

import itertools

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

NUMBERS = itertools.count()
METHODS = {
    'linear': [],
    'SynQT': [dict(type='SynQT', num_tokens=2, mid_dims=4, qsm_mid_dims=2)],
    'SynQT-kv': [dict(type='SynQT', num_tokens=2, mid_dims=4, qsm_mid_dims=2, context='kv', checkpoint=False)],
    'VQT': [dict(type='VQT', num_tokens=2)],
    'LST': [dict(type='LST', reduction=2)],
    'Res-Tuning-Bypass': [dict(type='ResTuningBypass', mid_dims=2)],
}


@pytest.fixture(autouse=True)
def quick_runner(monkeypatch):
    """A runner that neither lists the environment nor formats its config, which take longer than these runs."""
    monkeypatch.setattr(Runner, '_log_env', lambda *_: None)
    monkeypatch.setattr(Runner, 'dump_config', lambda *_: None)
    monkeypatch.setattr(Config, 'pretty_text', property(lambda _: ''))


def config(toy, tmp_path, name='linear', cache=None, **overrides):
    """The toy run with a backbone of this package; ``cache``: arguments of the hook, or None."""
    cfg = Config(toy.to_dict()) if hasattr(toy, 'to_dict') else toy.copy()
    cfg.model.backbone.type = 'mmpetl.VisionTransformer'
    cfg.model.backbone.petl = METHODS[name]
    cfg.model.backbone.drop_path_rate = .3
    cfg.model.head = dict(type='LinearClsHead', num_classes=2, in_channels=16 * 5 if name == 'VQT' else 16,
                          loss=dict(type='CrossEntropyLoss'), topk=(1, ))
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=-1, save_last=False)
    cfg.train_dataloader.dataset.serialize_data = cfg.val_dataloader.dataset.serialize_data = False
    cfg.train_cfg.val_interval = 5  # at the end only
    cfg.work_dir = str(tmp_path / f'{name}-{cache is not None}')
    cfg.experiment_name = f'{tmp_path.name}{name}{cache is not None}{next(NUMBERS)}'
    cfg.custom_hooks = [] if cache is None else [dict(type='mmpetl.FeatureCacheHook', **cache)]
    cfg.merge_from_dict(overrides)
    return cfg
