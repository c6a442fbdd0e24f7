# SPDX-License-Identifier: Apache-2.0
"""SSF: values, gradients, memory and folding."""

import pytest
import torch
import torch.nn.functional as F
from cases import drawn

from mmpetl.methods.ssf import SSF
from mmpetl.recompute import ELEMENTWISE, Recomputing
from mmpetl.sites import NORMS, OPS, BlockSpec, Tap


def specs(dims=(24, 24), heads=4):
    return [BlockSpec(i, 0, dim, heads, 4 * dim) for i, dim in enumerate(dims)]


@pytest.mark.parametrize('level', [0, ELEMENTWISE])
@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_formula_and_gradients(dtype, tolerance, level):
    method = drawn(SSF(specs())).to(dtype)
    y, g = (torch.randn(2, 5, 96, dtype=dtype, requires_grad=True) for _ in range(2))
    unit = method.blocks['1']['fc1']
    with Recomputing(level):
        out = method.on_linear(1, 'fc1', y, y)
    torch.testing.assert_close(out, y * unit.scale + unit.shift, atol=tolerance, rtol=tolerance)
    found = torch.autograd.grad(out, [y, unit.scale, unit.shift], g)
    for a, e in zip(found, [g * unit.scale, (g * y).sum((0, 1)), g.sum((0, 1))]):
        torch.testing.assert_close(a, e, atol=10 * tolerance, rtol=tolerance)


def kept_bytes(level):
    """Bytes that autograd keeps for one pass through q, k, v, attention, fc1 and GELU, parameters apart, each storage
    once."""
    method, kept = SSF(specs()), {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t
        return t

    x = torch.randn(2, 50, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), Recomputing(level):
        q, k, v = (method.on_linear(0, op, x, x * 2.) for op in 'qkv')
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        F.gelu(method.on_linear(0, 'fc1', y, y.repeat(1, 1, 4)))
    own = {p.untyped_storage().data_ptr() for p in method.parameters()}
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)


def test_scaled_results_are_not_kept():
    token_bytes = 2 * 50 * 24 * 4
    assert kept_bytes(0) - kept_bytes(ELEMENTWISE) == 7 * token_bytes


def test_a_scale_of_zero_is_exact():
    method, y = SSF(specs()).double(), torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        method.blocks['0']['q'].scale[:3] = 0.
    found = []
    for level in (0, 1):
        method.zero_grad()
        with Recomputing(level):
            out = F.gelu(method.on_linear(0, 'q', y, y))
        out.sum().backward()
        found.append(method.blocks['0']['q'].scale.grad)
    assert torch.equal(*found) and (found[0][:3] != 0).all()


@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_folds_into_every_operation(dtype, tolerance):
    method = drawn(SSF(specs())).to(dtype)
    for op in OPS:
        wide_in, wide_out = method.specs[0].op_dims(op)
        x = torch.randn(2, 5, wide_in, dtype=dtype)
        for bias in (torch.randn(wide_out, dtype=dtype), None):
            weight = torch.randn(wide_out, wide_in, dtype=dtype) / wide_in ** 0.5
            expected = method.on_linear(0, op, x, F.linear(x, weight, bias))
            torch.testing.assert_close(
                F.linear(x, *method.fold(0, op, weight, bias)), expected, atol=tolerance, rtol=tolerance)
    x, weight, bias = torch.randn(2, 5, 24, dtype=dtype), torch.randn(24, dtype=dtype), torch.randn(24, dtype=dtype)
    for i, op in ((0, 'norm1'), (1, 'norm2'), (1, 'final')):
        expected = method.on_norm(i, op, F.layer_norm(x, (24, ), weight, bias))
        torch.testing.assert_close(
            F.layer_norm(x, (24, ), *method.fold(i, op, weight, bias)), expected, atol=tolerance, rtol=tolerance)
    image, kernel = torch.randn(2, 3, 8, 8, dtype=dtype), torch.randn(24, 3, 4, 4, dtype=dtype) / 7
    expected = method.on_norm(0, 'embed', F.conv2d(image, kernel, bias, 4).flatten(2).transpose(1, 2))
    for shape in (kernel.shape, (24, -1)):
        weight, offset = method.fold(0, 'embed', kernel.reshape(shape), bias)
        out = F.conv2d(image, weight.reshape(kernel.shape), offset, 4).flatten(2).transpose(1, 2)
        torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize('options,expected', [(dict(), 12 * 22 * 768 + 2 * 768 * 2), (dict(ops='qkv'), 12 * 6 * 768),
                                              (dict(layers='0-5'), 6 * 22 * 768 + 2 * 768),
                                              (dict(ops=['final']), 2 * 768)])
def test_count_of_vit_base(options, expected):
    method = SSF(specs([768] * 12, 12), **options)
    assert sum(p.numel() for p in method.parameters()) == expected
    assert options or expected == 205824


def test_embedding_and_final_norm_belong_to_the_outer_blocks():
    method = SSF(specs((24, 24, 48)))
    taps = [Tap([method], i) for i in range(3)]
    assert [method.norm_ops(i) for i in range(3)] == [('embed', 'norm1', 'norm2'), ('norm1', 'norm2'),
                                                      ('norm1', 'norm2', 'final')]
    assert taps[2].norm('final', torch.zeros(1, 48)).shape == (1, 48)
    assert set(method.blocks['0']) | set(method.blocks['2']) == set(OPS + NORMS)


def test_start():
    torch.manual_seed(0)
    method = drawn(SSF(specs([768, 768], 12)))
    method.init_weights()
    scale, shift = (
        torch.cat([getattr(u, name) for b in method.blocks.values() for u in b.values()])
        for name in ('scale', 'shift'))
    assert abs(scale.mean() - 1) < 1e-3 and abs(shift.mean()) < 1e-3
    assert abs(scale.std() - 0.02) < 1e-3 and abs(shift.std() - 0.02) < 1e-3
    exact, y = SSF(specs(), std=0.), torch.randn(2, 5, 24)
    assert torch.equal(exact.on_linear(0, 'q', y, y), y)


@pytest.mark.parametrize('options,message', [(dict(ops=['q', 'norm3']), "unknown op 'norm3'; did you mean"),
                                             (dict(std=-1.), 'std must be >= 0'), (dict(ops=[]), 'no op given'),
                                             (dict(ops=['final'], layers=0), 'do not occur in blocks (0,)')])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match='SSF') as error:
        SSF(specs(), **options)
    assert message in str(error.value)


def test_bfloat16_keeps_one_half_precision_tensor_for_the_backward_pass():
    method = SSF(specs())
    y, saved = torch.randn(2, 5, 24, dtype=torch.bfloat16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = method.on_linear(0, 'q', y, y)
    assert out.dtype == torch.bfloat16 and method.blocks['0']['q'].scale.dtype == torch.float32
    kept = [t for t in saved if t.numel() > 24]
    assert len({t.data_ptr() for t in kept}) == 1 and kept[0].dtype == torch.bfloat16


def test_compiles_to_one_graph():
    method, y = drawn(SSF(specs())), torch.randn(2, 5, 24)
    compiled = torch.compile(
        lambda t: method.on_norm(1, 'final', method.on_linear(1, 'v', t, t)), fullgraph=True, backend='eager')
    assert torch.equal(compiled(y), method.on_norm(1, 'final', method.on_linear(1, 'v', y, y)))
