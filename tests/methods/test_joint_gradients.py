# SPDX-License-Identifier: Apache-2.0
"""Gradients that are formed for all blocks together are those of the formulas."""

import pytest
import torch
from torch.autograd import gradcheck

from mmpetl.methods import joint_gradients
from mmpetl.methods.joint_gradients import Factors, Queries
from mmpetl.methods.qsm import QSM, QSMs, ResidualBottleneck
from mmpetl.sites import AS_THEY_ARE, HalfCopies


class Copies(HalfCopies):
    """Copies that stand side by side, as under autocast, in full precision."""

    def __call__(self, parameter, frozen=False):
        return parameter * 1

    def copies(self, parameter):
        return True

    def stack(self, *parameters, frozen=False):
        return torch.stack(parameters)


HALF = pytest.mark.parametrize('half', [AS_THEY_ARE, Copies()], ids=['alone', 'copies'])


def stacks(drop_rate, half=AS_THEY_ARE):
    """Two blocks of SynQT without the frozen ones: queries, adapters, modules."""
    torch.manual_seed(0)
    adapters = torch.nn.ModuleList(ResidualBottleneck(6, 3, drop_rate) for _ in range(2)).double()
    modules = torch.nn.ModuleList(QSM(6, 2, 3, drop_rate, .3, .5) for _ in range(2)).double()
    queries, scale = torch.randn(2, 3, 6).double().requires_grad_(), torch.ones(1).double().requires_grad_()
    names = [*(dict(adapters.named_parameters(prefix='a'))), *dict(modules.named_parameters(prefix='m'))]
    parameters = [*adapters.parameters(), *modules.parameters(), queries, scale]

    def run(*_):
        torch.manual_seed(1)  # the same dropout
        all_, tokens, before = QSMs(modules, half, adapters), Queries(queries, scale), None
        for at in range(2):
            p, before = tokens.enter(at, 2, before)
            before = modules[at](adapters[at](p, all_.wide, at), all_, at).sum(1)
        return before

    return run, names, parameters


@HALF
@pytest.mark.parametrize('drop_rate', [0., .4])
def test_finite_differences(drop_rate, half):
    run, _, parameters = stacks(drop_rate, half)
    assert gradcheck(run, parameters, atol=1e-7)


@HALF
def test_the_same_as_autograd(monkeypatch, half):
    run, names, parameters = stacks(0., half)
    weight = torch.randn(2, 6).double()
    ours = torch.autograd.grad((run() * weight).sum(), parameters)
    monkeypatch.setattr(joint_gradients, 'own_gradient', lambda *_: False)
    theirs = torch.autograd.grad((run() * weight).sum(), parameters)
    for name, a, b in zip([*names, 'queries', 'scale'], ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12, msg=name)


def test_retained_graphs_and_accumulation():
    run, _, parameters = stacks(0.)
    out = run().sum()
    first = torch.autograd.grad(out, parameters, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(out, parameters)))


def test_a_part_of_the_places_is_refused():
    factors = Factors(torch.ones(2, 1, requires_grad=True))
    x = torch.ones(3, requires_grad=True)
    one, _ = factors.sum(0, x, x), factors.sum(1, x, x)
    with pytest.raises(RuntimeError, match='the backward pass of all blocks'):
        one.sum().backward()
