# SPDX-License-Identifier: Apache-2.0
"""The waist: selections, per-layer values, list order, and where prompts travel."""

import pytest
import torch

from mmpetl.sites import BlockSpec, Method, Tap, check_ops, parse_layers, per_layer, plan_prompts

SPECS = [BlockSpec(index=i, stage=0, dim=8, heads=2, ffn_dim=16) for i in range(4)]


class Add(Method):

    def __init__(self, specs, value, layers=None):
        super().__init__(specs, layers)
        self.value = value

    def on_linear(self, i, op, x, y):
        return y + self.value

    def linear_ops(self, index):
        return ('q', 'fc1')


class Double(Method):

    def on_qkv(self, i, x, q, k, v):
        return 2 * q, k, v


class Prompts(Method):

    def __init__(self, specs, at):
        super().__init__(specs)
        self.at = at

    def num_prompts(self, index):
        return 3 if index in self.at else 0

    def on_prompts(self, i):
        return torch.zeros(1, 3, 8) if i in self.at else None


def test_layers():
    assert parse_layers(None, 3) == (0, 1, 2)
    assert parse_layers('0-1,3', 4) == (0, 1, 3)
    assert parse_layers([-1], 4) == (3, )
    for bad in ('4', '1-9', [7], 'a', [], -5):
        with pytest.raises(ValueError):
            parse_layers(bad, 4)


def test_per_layer():
    assert per_layer(2, (1, 3), 4, 'rank') == {1: 2, 3: 2}
    assert per_layer([5, 6], (1, 3), 4, 'rank') == {1: 5, 3: 6}
    assert per_layer([5, 6, 7, 8], (1, 3), 4, 'rank') == {1: 6, 3: 8}
    assert per_layer({'default': 1, '2-3': 9}, (1, 3), 4, 'rank') == {1: 1, 3: 9}
    with pytest.raises(ValueError, match='block 3'):
        per_layer({'0-1': 1}, (1, 3), 4, 'rank')


def test_ops():
    assert check_ops('qv', 'x') == ('q', 'v')
    assert check_ops('proj', 'x') == ('proj', )
    assert check_ops('q,fc1', 'x') == ('q', 'fc1')
    assert check_ops('kv', 'x', 'qkv') == ('k', 'v')
    with pytest.raises(ValueError, match="did you mean 'proj'"):
        check_ops(['prj'], 'x')


def test_list_order_holds_across_points():
    x = q = k = v = torch.ones(1, 2, 8)
    assert Tap([Add(SPECS, 1.), Double(SPECS)], 0).qkv(x, q, k, v)[0][0, 0, 0] == 4
    assert Tap([Double(SPECS), Add(SPECS, 1.)], 0).qkv(x, q, k, v)[0][0, 0, 0] == 3


def test_taps_hold_only_what_acts():
    method = Add(SPECS, 1., layers=[1])
    y = torch.zeros(1)
    assert Tap([method], 0).linear('fc1', y, y) is y, 'block 0 is not adapted'
    assert Tap([method], 1).linear('proj', y, y) is y, 'the method does not act on proj'
    assert Tap([method], 1).linear('fc1', y, y) == 1
    assert Tap().kv() is None and Tap().prompts() is None


@pytest.mark.parametrize('at, pooled, full, read, dropped, merged', [
    ((0, 1, 2, 3), False, False, [False] * 4, 0, 0),
    ((0, 1, 2, 3), True, False, [False, False, False, True], 0, 3),
    ((0, ), False, False, [True], 3, 0),
    ((0, 1, 2, 3), False, True, [True] * 4, 3, 0),
])
def test_where_prompts_travel(at, pooled, full, read, dropped, merged):
    taps = [Tap([Prompts(SPECS, at)], i) for i in range(4)]
    plan_prompts(taps, pooled, full)
    assert [tap.prompts_read for tap in taps if tap.num_prompts] == read
    assert (taps[-1].prompts_dropped, taps[-1].prompts_pooled) == (dropped, merged)
