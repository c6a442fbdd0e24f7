# SPDX-License-Identifier: Apache-2.0
"""The query synthesis module of SynQT: queries talk to each other before they read the frozen transformer.

Zhang et al., https://arxiv.org/abs/2407.06964. Linears and LayerNorms keep torch's default initialisation.

Forward passes take ``half``, which hands out parameters as products read them (:class:`mmpetl.sites.HalfCopies`).
"""

from typing import Any, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..sites import AS_THEY_ARE, HalfCopies, own_gradient, scaled_product, scaled_sum


def norm(module: nn.LayerNorm, x: Tensor, half: HalfCopies) -> Tensor:
    """``module(x)`` in the precision of x, (..., C) -> (..., C); autocast would make it float32."""
    weight, bias = half(module.weight), half(module.bias)
    if weight.dtype is not x.dtype:
        return module(x)
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, module.eps)[0]


class _Bottlenecks(torch.autograd.Function):
    """See :func:`bottlenecks`; sums of gradients are part of the products."""

    @staticmethod
    def forward(ctx: Any, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *inputs: Tensor) -> Tensor:
        x = _inputs(inputs, len(w1))
        mid = torch.baddbmm(b1[:, None], x, w1.transpose(1, 2))
        code = F.gelu(mid)
        ctx.save_for_backward(w1, w2, mid, code, *inputs)  # not x, which holds the last of them several times
        return torch.baddbmm(b2[:, None], code, w2.transpose(1, 2)).add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        w1, w2, mid, code, *inputs = ctx.saved_tensors
        inner = torch.ops.aten.gelu_backward(torch.bmm(grad, w2), mid)
        weights = (torch.bmm(inner.transpose(1, 2), _inputs(inputs, len(w1))), inner.sum(1),
                   torch.bmm(grad.transpose(1, 2), code), grad.sum(1))
        if not any(ctx.needs_input_grad[4:]):
            return (*weights, *(None for _ in inputs))
        own, last = len(inputs) - 1, torch.baddbmm(grad, inner, w1)
        return (*weights, *last[:own].unbind(), last[own] if len(last) == len(inputs) else last[own:].sum(0))


def _inputs(inputs: Sequence[Tensor], groups: int) -> Tensor:
    """(R, C) each -> (G, R, C); the last one serves all groups that are left."""
    if groups == 1:
        return inputs[0][None]
    return torch.stack([*inputs, *[inputs[-1]] * (groups - len(inputs))])


def bottlenecks(inputs: Sequence[Tensor], w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """x + fc2(gelu(fc1(x))) of G bottlenecks at once, (G, R, C).

    Args:
        inputs: x of each, (R, C); the last one serves all bottlenecks that are left.
        w1, b1: Of the first linears, (G, m, C) and (G, m).
        w2, b2: Of the second linears, (G, C, m) and (G, C).
    """
    if own_gradient(*inputs, w1, b1, w2, b2):
        return _Bottlenecks.apply(w1, b1, w2, b2, *inputs)
    x = _inputs(inputs, len(w1))
    code = F.gelu(torch.baddbmm(b1[:, None], x, w1.transpose(1, 2)))
    return x + torch.baddbmm(b2[:, None], code, w2.transpose(1, 2))


class ResidualBottleneck(nn.Module):
    """z + dropout(fc2(dropout(gelu(fc1(z))))); (..., C) -> (..., C)."""

    def __init__(self, dim: int, mid_dims: int, drop_rate: float = 0.) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, mid_dims)
        self.fc2 = nn.Linear(mid_dims, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, z: Tensor, half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """z (..., C) -> (..., C)."""
        if self.training and self.drop.p:
            return z + self.drop(half.linear(self.fc2, self.drop(F.gelu(half.linear(self.fc1, z)))))
        parts = (half(t)[None] for m in (self.fc1, self.fc2) for t in (m.weight, m.bias))
        return bottlenecks([z.flatten(0, -2)], *parts).view_as(z)


class QueryAttention(nn.Module):
    """Self-attention among the queries with one head of width C and projections "identity + bottleneck"; (B, P, C) ->
    (B, P, C)."""

    def __init__(self, dim: int, mid_dims: int, drop_rate: float) -> None:
        super().__init__()
        self.q_norm, self.kv_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q_proj, self.k_proj, self.v_proj, self.proj = (ResidualBottleneck(dim, mid_dims) for _ in range(4))
        self.drop = nn.Dropout(drop_rate)

    def _project(self, z: Tensor, half: HalfCopies) -> Tensor:
        """Queries, keys and values of z (B, P, C) by batched products, (3, B, P, C)."""
        inputs = [norm(m, z, half).flatten(0, 1) for m in (self.q_norm, self.kv_norm)]
        layers = [(m.fc1, m.fc2) for m in (self.q_proj, self.k_proj, self.v_proj)]
        parts = (half.stack(*(getattr(m, name) for m in same)) for same in zip(*layers) for name in ('weight', 'bias'))
        return bottlenecks(inputs, *parts).unflatten(1, z.shape[:2])

    def forward(self, z: Tensor, half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """z (B, P, C) -> (B, P, C)."""
        q, k, v = self._project(z, half).unbind()
        weights = scaled_product(q, k.transpose(-2, -1), z.shape[-1]**-0.5).softmax(-1).to(v.dtype)
        return self.drop(self.proj(self.drop(weights) @ v, half))


class QSM(nn.Module):
    """Query synthesis module: z + s_a * attention(LN(z)), then z + s_f * bottleneck(LN(z)); (B, P, C) -> (B, P, C)."""

    def __init__(self, dim: int, mid_dims: int, ffn_dims: int, drop_rate: float, attn_scale: float,
                 ffn_scale: float) -> None:
        super().__init__()
        # Kept, because reset_parameters must be able to return to them at any time.
        self.start = attn_scale, ffn_scale
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = QueryAttention(dim, mid_dims, drop_rate)
        self.mlp = ResidualBottleneck(dim, ffn_dims, drop_rate)
        self.attn_scale, self.ffn_scale = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The two factors back to their start."""
        nn.init.constant_(self.attn_scale, self.start[0])
        nn.init.constant_(self.ffn_scale, self.start[1])

    def forward(self, z: Tensor, half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """z (B, P, C) -> (B, P, C)."""
        z = scaled_sum(z, half(self.attn_scale), self.attn(norm(self.norm1, z, half), half))
        return scaled_sum(z, half(self.ffn_scale), self.mlp(norm(self.norm2, z, half), half))
