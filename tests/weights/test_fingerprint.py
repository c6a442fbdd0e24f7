# SPDX-License-Identifier: Apache-2.0
"""A fingerprint depends on keys, types, shapes and values, and on nothing else."""

import pytest
import torch

from mmpetl.weights import fingerprint


@pytest.fixture
def state():
    return {
        'a.weight': torch.arange(6.).reshape(2, 3),
        'b': torch.tensor(3),
        'half': torch.ones(2, dtype=torch.bfloat16)
    }


def test_published_value(state):
    """Written out by hand, so that files fingerprinted today are recognised tomorrow."""
    import hashlib
    import struct
    want = hashlib.sha256(b'a.weight\0float32\0(2, 3)\0' + struct.pack('<6f', *range(6)) + b'b\0int64\0()\0' +
                          struct.pack('<q', 3) + b'half\0bfloat16\0(2,)\0' + b'\x80\x3f\x80\x3f')
    assert fingerprint(state) == want.hexdigest()


def test_layout_and_order_do_not_matter(state):
    turned = dict(reversed(list(state.items())))
    turned['a.weight'] = state['a.weight'].t().contiguous().t()
    assert not turned['a.weight'].is_contiguous() and fingerprint(turned) == fingerprint(state)
    turned['a.weight'] = torch.nn.Parameter(turned['a.weight'])
    assert fingerprint(turned) == fingerprint(state)


@pytest.mark.parametrize('change', [
    lambda s: s.update(b=torch.tensor(4)), lambda s: s.update({'a.weight': s['a.weight'].reshape(3, 2)}),
    lambda s: s.update({'a.weight': s['a.weight'].double()}), lambda s: s.update(c=s.pop('b')),
    lambda s: s['a.weight'].view(torch.int32)[0].bitwise_xor_(1)])
def test_any_change_matters(state, change):
    before = fingerprint(state)
    change(state)
    assert fingerprint(state) != before


def test_empty_tensors():
    assert fingerprint({'e': torch.zeros(0, 3)}) != fingerprint({'e': torch.zeros(3, 0)})
