# SPDX-License-Identifier: Apache-2.0
"""FacT against weight increments formed slice by slice."""

import pytest
import torch
import torch.nn.functional as F
from cases import drawn

from mmpetl.methods.fact import FacT
from mmpetl.sites import OPS, BlockSpec

KINDS = [dict(kind='tt'), dict(kind='tk'), dict(kind='tk', ref_layout=True)]


def specs(dims=(24, 24), heads=4, ratio=4):
    return [BlockSpec(i, 0, dim, heads, int(ratio * dim)) for i, dim in enumerate(dims)]


def textbook_update(method, i, op):
    """The (Cout, Cin) increment scale * V M_j U, slice after slice, from the published definitions of M."""
    r, chunks = method.rank, method.chunks if op in ('fc1', 'fc2') else 1
    if method.kind == 'tt':
        m = method.blocks[str(i)][op]
        small = [m[j * r:(j + 1) * r] if op == 'fc1' else m[:, j * r:(j + 1) * r] for j in range(chunks)]
    else:
        first = 12 * i + dict(q=0, k=1, v=2, proj=3, fc1=4, fc2=8)[op]
        slices = torch.stack(
            [sum(method.core[:, :, c] * method.mix[c, first + j] for c in range(r)) for j in range(chunks)], -1)
        if op in ('fc1', 'fc2') and method.ref_layout:
            # The published code reads the (r, r, 4) slices as an (r, 4 r) matrix and counts its columns as (slot,
            # rank).
            flat = slices.reshape(r, chunks * r)
            small = [flat[:, j * r:(j + 1) * r] for j in range(chunks)]
            small = [s.t() for s in small] if op == 'fc1' else small
        else:
            small = [slices[:, :, j].t() for j in range(chunks)]
    increments = [method.v @ s @ method.u for s in small]
    return method.scales[i] * torch.cat(increments, 1 if op == 'fc2' else 0)


@pytest.mark.parametrize('op', OPS)
@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('options', KINDS, ids=str)
def test_equals_weight_increments(options, dtype, tolerance, op):
    method = drawn(FacT(specs(), rank=3, scale=[1., 0.3], **options)).to(dtype).eval()
    torch.manual_seed(1)
    wide_in, wide_out = method.specs[1].op_dims(op)
    x, y, g = (torch.randn(2, 5, c, dtype=dtype, requires_grad=True) for c in (wide_in, wide_out, wide_out))
    expected, actual = y + F.linear(x, textbook_update(method, 1, op)), method.on_linear(1, op, x, y)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
    used = [x, y, *method.parameters()]
    for a, e in zip(*(torch.autograd.grad(out, used, g, allow_unused=True) for out in (actual, expected))):
        assert (a is None) == (e is None)
        if a is not None:
            torch.testing.assert_close(a, e, atol=10 * tolerance, rtol=tolerance)


@pytest.mark.parametrize('options', KINDS, ids=str)
def test_fold(options):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        method = drawn(FacT(specs(), rank=3, scale=0.3, ops=['q', 'fc1', 'fc2'], **options)).to(dtype).eval()
        for op in OPS:
            wide_in, wide_out = method.specs[0].op_dims(op)
            x, weight = torch.randn(2, 5, wide_in, dtype=dtype), torch.randn(wide_out, wide_in, dtype=dtype) / 5
            y = F.linear(x, weight)
            expected = method.on_linear(0, op, x, y) if op in method.linear_ops(0) else y
            folded, bias = method.fold(0, op, weight, None)
            assert bias is None
            torch.testing.assert_close(F.linear(x, folded), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize('options,expected', [
    (dict(kind='tt', rank=16), 61440), (dict(kind='tt', rank=8), 21504), (dict(kind='tt', rank=4), 8448),
    (dict(kind='tk', rank=32), 86528), (dict(kind='tk', rank=16), 30976)
])
def test_count_of_vit_base(options, expected):
    method, r = FacT(specs([768] * 12, 12), **options), options['rank']
    assert sum(p.numel() for p in method.parameters()) == expected
    assert expected == 2 * 768 * r + (144 * r ** 2 if options['kind'] == 'tt' else 144 * r + r ** 3)


@pytest.mark.parametrize('options', KINDS, ids=str)
def test_start_is_exact_and_everything_learns(options):
    torch.manual_seed(0)
    method = drawn(FacT(specs(), rank=3, **options))
    method.init_weights()
    inputs = {op: tuple(torch.randn(2, 5, c) for c in method.specs[0].op_dims(op)) for op in OPS}
    assert all(torch.equal(method.on_linear(0, op, x, y), y) for op, (x, y) in inputs.items())
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    for _ in range(2):
        loss = sum((method.on_linear(i, op, x, y) - 1).square().mean() for i in (0, 1) for op, (x, y) in inputs.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [name for name, p in method.named_parameters() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize('options,message', [(dict(rank=0), 'rank must be a whole number >= 1'),
                                             (dict(kind='cp'), "'tt' or 'tk'"), (dict(ops=['fc3']), "unknown op 'fc3'"),
                                             (dict(ref_layout=True), "belongs to kind='tk'"),
                                             (dict(scale=[1., 2., 3.]), 'scale has 3 values')])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match='FacT') as error:
        FacT(specs(), **options)
    assert message in str(error.value)


def test_widths_must_agree():
    with pytest.raises(ValueError, match=r'different widths \[24, 48\].*`layers` of one stage'):
        FacT(specs((24, 48, 48)))
    assert FacT(specs((24, 48, 48)), layers='1-2').u.shape == (16, 48)
    with pytest.raises(ValueError, match='ffn_dim 60 is no multiple of the width 24'):
        FacT(specs(ratio=2.5))
    assert FacT([BlockSpec(0, 0, 24, 4, 60)], ops='qv', rank=2).chunks == 2


def test_bfloat16_autocast():
    for options in KINDS:
        method = drawn(FacT(specs(), rank=3, scale=0.1, **options)).eval()
        x, y = torch.randn(2, 5, 24), torch.randn(2, 5, 96)
        expected = method.on_linear(0, 'fc1', x, y)
        with torch.autocast('cpu', torch.bfloat16):
            out = method.on_linear(0, 'fc1', x, y.bfloat16())
        assert out.dtype == torch.bfloat16
        assert (out - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize('options', KINDS, ids=str)
def test_compiles_to_one_graph(options):
    method, x = drawn(FacT(specs(), rank=3, **options)).eval(), torch.randn(2, 5, 24)
    compiled = torch.compile(
        lambda t: method.on_linear(1, 'fc2', method.on_linear(1, 'fc1', t, t.repeat(1, 1, 4)), t),
        fullgraph=True,
        backend='eager')
    assert torch.equal(compiled(x), method.on_linear(1, 'fc2', method.on_linear(1, 'fc1', x, x.repeat(1, 1, 4)), x))
