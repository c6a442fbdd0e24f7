# SPDX-License-Identifier: Apache-2.0
"""The optimizer holds trainable tensors only; multipliers work; the log stays short."""

import pytest
from cases import BACKBONE
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

import mmpetl.training.optim  # noqa: F401


def _build(model, **paramwise):
    return build_optim_wrapper(model, dict(
        constructor='mmpetl.TrainableOptimWrapperConstructor', optimizer=dict(type='SGD', lr=0.1, weight_decay=0.01),
        **(dict(paramwise_cfg=paramwise) if paramwise else {})))


def test_only_trainable_tensors():
    model = BACKBONE['vit'].build([dict(type='AdaptFormer', mid_dims=4)], tune=['*ln1*'])
    wrapper = _build(model)
    held = {id(p) for g in wrapper.optimizer.param_groups for p in g['params']}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_multipliers(monkeypatch):
    model = BACKBONE['vit'].build([dict(type='AdaptFormer', mid_dims=4)])
    lines = []
    monkeypatch.setattr(MMLogger, 'callHandlers', lambda self, record: lines.append(record.getMessage()))
    wrapper = _build(model, bias_decay_mult=0., custom_keys={'petl.adaptformer.blocks.2': dict(lr_mult=3.)})
    groups = {id(g['params'][0]): g for g in wrapper.optimizer.param_groups if g['params']}
    for name, parameter in model.petl.named_parameters():
        group = groups[id(parameter)]
        assert group['lr'] == pytest.approx(0.3 if '.2.' in name else 0.1)
        if '.2.' not in name:
            assert group['weight_decay'] == (0 if name.endswith('bias') else 0.01)
    assert len(groups) == len(list(model.petl.parameters()))
    assert not [line for line in lines if 'skipped' in line or 'paramwise_options' in line]


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match='nothing trains'):
        _build(BACKBONE['vit'].build())
