# SPDX-License-Identifier: Apache-2.0
"""The audit of the first iteration finds what trains in vain and what trains in secret."""

import logging
from types import SimpleNamespace

import pytest
import torch
from cases import BACKBONE, features

from mmpetl.hooks.audit import GradientAuditHook


def _runner(model):
    return SimpleNamespace(model=model, logger=logging.getLogger('audit'))


def _iterate(model, hook, loss):
    runner = _runner(model)
    hook.before_train_iter(runner, 0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss(model).backward()
    optimizer.step()
    optimizer.zero_grad()
    hook.after_train_iter(runner, 0)


def _loss(model):
    return features(model(BACKBONE['vit'].inputs())).square().mean()


def test_sound_model_passes_once():
    model = BACKBONE['vit'].build([dict(type='LoRA', rank=2)])
    hook = GradientAuditHook()
    _iterate(model, hook, _loss)
    assert hook._done and not hook._handles


def test_unused_tensor_is_named():
    model = BACKBONE['vit'].build([dict(type='LoRA', rank=2)])
    model.petl.unused = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r'petl.unused.weight'):
        _iterate(model, GradientAuditHook(), _loss)
    _iterate(model, GradientAuditHook(allow=['unused']), _loss)


def test_changed_trunk_is_named():
    model = BACKBONE['vit'].build([dict(type='LoRA', rank=2)])

    def sneaky(m):
        with torch.no_grad():
            m.cls_token.add_(1)
        return _loss(m)

    with pytest.raises(RuntimeError, match='cls_token'):
        _iterate(model, GradientAuditHook(), sneaky)
