# SPDX-License-Identifier: Apache-2.0
"""Weights cast together: the values and gradients of autocast, fewer kernels, and no stale copy."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from cases import BACKBONE, perturb
from torch import nn

from mmpetl.sites import HalfCopies, add_product
from mmpetl.sites.half import new_pass


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(8, 8) for _ in range(3))


def run(layers, x, half=None):
    with torch.autocast('cpu', torch.bfloat16):
        for layer in layers:
            x = layer(x) if half is None else half.linear(layer, x)
    grads = torch.autograd.grad(x.float().square().sum(), list(layers.parameters()))
    return x, grads


def test_values_and_gradients_of_autocast(layers):
    half, x = HalfCopies(), torch.randn(4, 8)
    wanted = run(layers, x)
    for _ in range(3):  # the first step notes what is asked for, the later ones cast at once
        found = run(layers, x, half)
        assert torch.equal(found[0], wanted[0]) and all(map(torch.equal, found[1], wanted[1]))


def test_one_kernel_each_way(layers):
    """All copies by one kernel, all gradients by one; what nobody reads gets zeros."""
    half, x = HalfCopies(), torch.randn(4, 8)
    run(layers, x, half), new_pass()
    x = x.bfloat16()
    with torch.autocast('cpu', torch.bfloat16), torch.profiler.profile() as seen:
        y = half.linear(layers[0], x)
        torch.autograd.backward(y, torch.ones_like(y))
    count = {event.key: event.count for event in seen.key_averages()}
    assert count['aten::_foreach_copy_'] == 2 and 'aten::cat' not in count and 'aten::to' not in count
    assert layers[0].weight.grad.abs().sum() > 0 and not layers[1].weight.grad.any() and not layers[2].bias.grad.any()
    read = list(layers[0].parameters())
    wanted = torch.autograd.grad(F.linear(x, *(p.bfloat16() for p in read)).sum(), read)
    assert all(torch.equal(p.grad, w) for p, w in zip(read, wanted))


def test_no_copy_is_stale(layers):
    half, x = HalfCopies(), torch.randn(4, 8)
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    for change in range(5):
        wanted = run(layers, x)
        assert torch.equal(run(layers, x, half)[0], wanted[0])
        if change == 0:
            for p, g in zip(layers.parameters(), wanted[1]):
                p.grad = g
            optimizer.step()
        elif change == 1:
            layers.load_state_dict({k: v + 1 for k, v in layers.state_dict().items()})
        elif change == 2:
            layers[0].weight.data = torch.randn(8, 8)
        elif change == 3:
            layers[1].weight.requires_grad_(False).zero_()
            layers[1].weight.requires_grad_(True)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        half.linear(layers[0], x)
    run(layers, x, half)  # copies of inference mode are not used in training
    with torch.no_grad():
        with torch.autocast('cpu', torch.bfloat16):
            assert not half(layers[0].weight).requires_grad
    with torch.autocast('cpu', torch.bfloat16):
        assert half(layers[0].weight).requires_grad


def test_changes_that_leave_no_trace():
    """What averages of weights and fused optimizers do: the next forward pass sees it."""
    model = BACKBONE['vit'].build([dict(type='LoRA', rank=2), dict(type='AdaptFormer', mid_dims=4)])
    x = BACKBONE['vit'].inputs()
    perturb(model.petl, 0.3)

    def run():
        with torch.autocast('cpu', torch.bfloat16):
            return model(x)[-1]

    model.eval()
    with torch.no_grad():
        first, second = run(), run()
        assert torch.equal(first, second)
        for p in model.petl.parameters():
            p.data.mul_(3)
        assert not torch.equal(run(), first)
        fresh = run()
        for method in model.petl.values():
            method.half = HalfCopies()
        assert torch.equal(run(), fresh)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)
    for _ in range(2):
        before = run()
        before.float().square().mean().backward()
        optimizer.step()
        after = run()
        for method in model.petl.values():
            method.half = HalfCopies()
        assert torch.equal(after, run()) and not torch.equal(after, before)


def test_nothing_happens_without_autocast(layers):
    half = HalfCopies()
    for _ in range(2):
        assert half(layers[0].weight) is layers[0].weight and half(None) is None
    double = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    with torch.autocast('cpu', torch.bfloat16):
        for _ in range(2):
            assert half(double) is double
            plain = torch.zeros(2)
            assert half(plain) is plain


def test_copies_of_models_bring_none(layers):
    half = HalfCopies()
    run(layers, torch.randn(4, 8), half), run(layers, torch.randn(4, 8), half)
    assert half._copies and not copy.deepcopy(half)._copies and not pickle.loads(pickle.dumps(half))._wanted


def test_steps_of_a_model_with_accumulation():
    """Several backward passes between two steps of the optimizer, and copies of the model, under autocast."""
    model = BACKBONE['vit'].build([dict(type='LoRA', rank=2, alpha=8), dict(type='AdaptFormer', mid_dims=4)])
    twin, x = copy.deepcopy(model), BACKBONE['vit'].inputs()
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in (model, twin)]
    for method in twin.petl.values():
        method.half = lambda p: p
        method.half.linear = lambda module, t: module(t)
    for m, optimizer in zip((model, twin), optimizers):
        torch.manual_seed(0)
        for _ in range(3):
            for _ in range(2):
                with torch.autocast('cpu', torch.bfloat16):
                    loss = m(x)[-1].float().square().mean()
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for (name, a), b in zip(model.petl.named_parameters(), twin.petl.parameters()):
        torch.testing.assert_close(a, b, msg=name, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize('scale', [1., 0.3])
def test_scaled_sum(scale):
    """Gradients of the sum with its scale inside the products, against finite differences."""
    torch.manual_seed(0)
    y, code, weight = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 5), (2, 3, 2), (5, 2)))
    assert torch.autograd.gradcheck(lambda *t: add_product(*t, scale), (y, code, weight))
    torch.testing.assert_close(add_product(y, code, weight, scale), y + scale * F.linear(code, weight))
