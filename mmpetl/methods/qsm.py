# SPDX-License-Identifier: Apache-2.0
"""The query synthesis module of SynQT: queries talk to each other before they read the frozen transformer.

Zhang et al., https://arxiv.org/abs/2407.06964. Linears and LayerNorms keep torch's default initialisation.

The parameters of all blocks stand side by side for a forward pass, so that their gradients are computed together.
"""

from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sites import AS_THEY_ARE, HalfCopies
from .joint_gradients import Bottlenecks, Factors


class ResidualBottleneck(nn.Module):
    """z + dropout(fc2(dropout(gelu(fc1(z))))); (..., C) -> (..., C)."""

    def __init__(self, dim: int, mid_dims: int, drop_rate: float = 0.) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, mid_dims)
        self.fc2 = nn.Linear(mid_dims, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, z: Tensor, stack: Optional[Bottlenecks] = None, at: int = 0) -> Tensor:
        """z (..., C) -> (..., C); this is group ``at`` of ``stack``, None: of one of its own."""
        stack = Bottlenecks([[self]], AS_THEY_ARE) if stack is None else stack
        return stack(at, [z.flatten(0, -2)], self.drop.p if self.training else 0.).view_as(z)


class QSMs:
    """The parameters of the modules of all blocks side by side, for one forward pass.

    Args:
        modules: One QSM per block.
        half: Hands out parameters as products read them.
        adapters: Wide bottlenecks in front of them, one per block, which share products with those inside; or none.
    """

    def __init__(self, modules: Sequence['QSM'], half: HalfCopies,
                 adapters: Sequence[ResidualBottleneck] = ()) -> None:
        self.half, self.first = half, len(adapters)
        self.wide = Bottlenecks([[m] for m in (*adapters, *(m.mlp for m in modules))], half)
        self.narrow = Bottlenecks([group for m in modules for group in m.attn.projections()], half)
        self.factors = Factors(half.stack(*(f for m in modules for f in (m.attn_scale, m.ffn_scale))))


class QueryAttention(nn.Module):
    """Self-attention among the queries with one head of width C and projections "identity + bottleneck"; (B, P, C) ->
    (B, P, C)."""

    def __init__(self, dim: int, mid_dims: int, drop_rate: float) -> None:
        super().__init__()
        self.q_norm, self.kv_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q_proj, self.k_proj, self.v_proj, self.proj = (ResidualBottleneck(dim, mid_dims) for _ in range(4))
        self.drop = nn.Dropout(drop_rate)

    def projections(self) -> Tuple[Tuple[ResidualBottleneck, ...], ...]:
        """Bottlenecks of q, k and v, and that of the output."""
        return (self.q_proj, self.k_proj, self.v_proj), (self.proj, )

    def forward(self, z: Tensor, half: HalfCopies = AS_THEY_ARE, stack: Optional[Bottlenecks] = None,
                at: int = 0) -> Tensor:
        """z (B, P, C) -> (B, P, C); its projections are groups ``at`` and ``at + 1`` of ``stack``, None: of one of
        their own."""
        stack = Bottlenecks(self.projections(), half) if stack is None else stack
        inputs = [half.norm(m, z).flatten(0, 1) for m in (self.q_norm, self.kv_norm)]
        # One head: (B, 1, P, C) each.
        q, k, v = stack(at, inputs).unflatten(1, z.shape[:2])[:, :, None].unbind()
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.drop.p if self.training else 0.)
        return self.drop(self.proj(y.squeeze(1).to(z.dtype), stack, at + 1))


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

    def forward(self, z: Tensor, all_: Optional[QSMs] = None, at: int = 0) -> Tensor:
        """z (B, P, C) -> (B, P, C); this is module ``at`` of ``all_``, None: of one of its own."""
        all_ = QSMs([self], AS_THEY_ARE) if all_ is None else all_
        half = all_.half
        z = all_.factors.sum(2 * at, z, self.attn(half.norm(self.norm1, z), half, all_.narrow, 2 * at))
        return all_.factors.sum(2 * at + 1, z, self.mlp(half.norm(self.norm2, z), all_.wide, all_.first + at))
