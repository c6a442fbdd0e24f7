# SPDX-License-Identifier: Apache-2.0
"""Frozen weights under autocast: copies made together have the values of casts where they are used."""

import threading
import warnings

import pytest
import torch
from cases import BACKBONE, BACKBONES, CASE, FOREIGN, features, perturb

from mmpetl.backbones import block as blocks
from mmpetl.backbones import cast, container, side

warnings.filterwarnings('ignore')
ROWS = [(b, 'LoRA') for b in [*BACKBONES, *FOREIGN]] + [(BACKBONE['vit'], 'VPT'), (BACKBONE['videomae'], 'SynQT')]


def step(model, x):
    """Feature and gradients of one step under autocast."""
    model.zero_grad(set_to_none=True)
    with torch.autocast('cpu', torch.bfloat16):
        y = features(model(x))
    y.float().square().sum().backward()
    return [y.detach()] + [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize('backbone, method', ROWS, ids=lambda value: getattr(value, 'name', value))
@pytest.mark.parametrize('options', [{}, dict(memory='lightest')], ids=['standard', 'lightest'])
def test_equal_to_casts_where_they_are_used(backbone, method, options, monkeypatch):
    torch.manual_seed(0)
    model, x = backbone.build(CASE[method].petl, **options), backbone.inputs()
    perturb(model.petl)
    model.train()
    step(model, x)  # the methods' own copies settle
    ours = step(model, x)
    assert not any(tap.cast for tap in model.petl.taps), 'copies are dropped after the block'
    for module in (blocks, side):
        monkeypatch.setattr(module, 'hold', lambda *_, **__: False)
    monkeypatch.setattr(container, 'hold_all', lambda *_, **__: False)
    theirs = step(model, x)
    if method in ('SynQT', 'VPT'):  # pass norms whose weights are copies too, which autocast alone would not round
        a, b = (torch.cat([t.flatten() for t in found]) for found in (ours, theirs))
        assert (a - b).norm() <= 0.01 * b.norm()
    else:
        assert all(map(torch.equal, ours, theirs))


def test_trained_weights_and_hooked_layers_are_left_alone():
    model = BACKBONE['vit'].build(CASE['LoRA'].petl, tune=['layers.1.*'])
    seen = []
    proj = model.layers[0].attn.proj
    proj.register_forward_hook(lambda *args: seen.append(1))
    grads = step(model, BACKBONE['vit'].inputs())
    assert seen and len(grads) > 1
    assert all(p.grad is not None for p in model.layers[1].parameters() if p.requires_grad)
    with torch.autocast('cpu', torch.bfloat16):
        assert not cast.hold(model.layers[1], torch.zeros(1))


def test_blocks_of_a_side_method_are_cast_at_once():
    """All by one kernel, and another for the biases that VideoMAE's keys do not have; two more for the method's own."""
    model, x = BACKBONE['videomae'].build(CASE['SynQT'].petl), BACKBONE['videomae'].inputs()
    step(model, x), step(model, x)  # the method's own copies settle
    with torch.profiler.profile() as seen:
        step(model, x)
    count = {event.key: event.count for event in seen.key_averages()}
    assert count['aten::_foreach_copy_'] == 3 and count['aten::_foreach_zero_'] == 1
    with torch.autocast('cpu', torch.bfloat16):
        assert cast.hold_all(model.blocks, x) and not cast.hold_all(model.blocks, x)
    for block in model.blocks:
        assert not cast.held(block.tap, 'qkv')[1].chunk(3)[1].any()
        cast.release(block)


def test_each_thread_has_its_own():
    model = BACKBONE['vit'].build([])
    block, found = model.layers[0], []
    with torch.autocast('cpu', torch.bfloat16):
        assert cast.hold(block, torch.zeros(1))
        other = threading.Thread(target=lambda: found.append(cast.held(block.tap, 'proj')))
        other.start()
        other.join()
        assert found == [None] and cast.held(block.tap, 'proj')[0].dtype is torch.bfloat16
    cast.release(block)
    assert not block.tap.cast
