# SPDX-License-Identifier: Apache-2.0
"""SynQT: query synthesis tuning, query tokens that are built layer by layer and read a frozen transformer.

Zhang et al., "Parameter-Efficient and Memory-Efficient Tuning for Vision Transformer: A Disentangled Approach",
https://arxiv.org/abs/2407.06964. For block i with normed image tokens u_i, P learnable queries Q_i and mean query
outputs qbar::

    p  = dropout(QSM_i(A_i(Q_i + s * qbar_{i-1})))    QSM: query synthesis module, A: residual bottleneck
    h  = attention(p -> u_i)                          frozen weights; the image tokens never see the queries
    hh = ffn(p + h)
    q  = p + h + hh
    F  = [qbar_{L-1}; qbar_0..; hbar_0..; hhbar_0..]  means over the P tokens, 3 L + 1 rows
    g_r = F_r + A(LN(F_r))
    y  = mean_r w_r g_r                               w_0 = 1,  w_r = tanh(dropout(gelu(W g_0 + b)))_r
    feature = LN_head(y)

Only the queries' path is differentiated. Nothing starts at zero, so the start is not the frozen network's feature.
"""

from functools import partial
from typing import Any, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import METHODS
from ..sites import AS_THEY_ARE, BlockSpec, HalfCopies, Layers, Method, positive, scaled_product
from .joint_gradients import Bottlenecks, Queries
from .qsm import QSM, QSMs, ResidualBottleneck
from .vqt import MemoryForm, batch_size, one_width, recompute


class Combine(nn.Module):
    """Mean of the rows, weighted by gates that the first row computes; (B, rows, C) -> (B, C)."""

    def __init__(self, dim: int, rows: int, drop_rate: float) -> None:
        super().__init__()
        self.gate, self.drop = nn.Linear(dim, rows - 1), nn.Dropout(drop_rate)

    def forward(self, rows: Tensor, half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """rows (B, rows, C) -> (B, C)."""
        gates = torch.tanh(self.drop(F.gelu(half.linear(self.gate, rows[:, 0]))))
        weights = F.pad(gates, (1, 0), value=1.)[:, None].to(rows.dtype)
        return scaled_product(weights, rows, 1 / rows.shape[1]).squeeze(1)


class OffsetNorm(nn.Module):
    """LayerNorm whose weight and bias are those of a frozen norm plus trainable offsets that start at zero; (..., C) ->
    (..., C).

    It therefore starts from the frozen norm's values whenever those are loaded, and a loaded offset is never
    overwritten.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight_offset, self.bias_offset = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight_offset)
        nn.init.zeros_(self.bias_offset)

    def forward(self, y: Tensor, norm: Optional[nn.Module]) -> Tensor:
        """y (..., C), the frozen norm or None -> (..., C)."""
        weight, bias = self.weight_offset, self.bias_offset
        if norm is None:
            weight = weight + 1.
        else:
            weight, bias = torch._foreach_add([weight, bias], [norm.weight, norm.bias])
        return F.layer_norm(y, y.shape[-1:], weight, bias, self.eps)


@METHODS.register_module()
class SynQT(Method):
    """Query synthesis tuning; the feature is C wide.

    Args:
        specs: Blocks of the backbone.
        num_tokens: Query tokens P per block.
        feat_scale: Start of the learnable factor of the previous block's mean query (one for all blocks).
        attn_scale: Start of the learnable factor of each QSM's attention.
        ffn_scale: Start of the learnable factor of each QSM's bottleneck.
        mid_dims: Width of the bottlenecks.
        qsm_mid_dims: Width of the bottlenecks in the QSM's q, k, v and output projections.
        drop_rate: Dropout on queries, QSM attention, wide bottlenecks and gates.
        row_drop_rate: Probability of dropping a row of an image (stochastic depth); the first row is never dropped.
        context: 'kv' reads keys and values, 'absorb' norm1(x), see :func:`context_reads`; same outputs. None: 'kv'
            with the backbone's ``memory='standard'``, else 'absorb'.
        checkpoint: Recompute each block's query path and the combination of rows in the backward pass. None: not with
            ``memory='standard'``.
        drop_dead: Leave out the published parameters that never receive a gradient (a LayerNorm per block, one weight
            per row).
        layers: Blocks that are read.

    Raises:
        ValueError: If a width or ``num_tokens`` is < 1, ``context`` is unknown, fewer than 2 blocks are read or they
            differ in width.
    """

    costs_only = ('context', 'checkpoint')

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 num_tokens: int = 16,
                 feat_scale: float = 0.1,
                 attn_scale: float = 0.1,
                 ffn_scale: float = 0.1,
                 mid_dims: int = 48,
                 qsm_mid_dims: int = 8,
                 drop_rate: float = 0.1,
                 row_drop_rate: float = 0.3,
                 context: Optional[str] = None,
                 checkpoint: Optional[bool] = None,
                 drop_dead: bool = True,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        dim, depth = one_width(specs, 'SynQT'), len(self.layers)
        if depth < 2:
            raise ValueError('SynQT: queries are passed from block to block, so layers must name at least 2 blocks')
        for name, value in dict(num_tokens=num_tokens, mid_dims=mid_dims, qsm_mid_dims=qsm_mid_dims).items():
            positive(value, name, 'SynQT')
        self.memory = MemoryForm(context, checkpoint, 'SynQT')
        self.start, self.row_drop_rate = feat_scale, row_drop_rate
        self.queries, self.feat_scale = nn.Parameter(torch.empty(depth, num_tokens, dim)), nn.Parameter(torch.empty(1))
        self.drop = nn.Dropout(drop_rate)
        self.blocks = self.for_blocks(lambda i: nn.ModuleDict(dict(
            adapter=ResidualBottleneck(dim, mid_dims, drop_rate),
            qsm=QSM(dim, qsm_mid_dims, mid_dims, drop_rate, attn_scale, ffn_scale))))
        self.row_norm, self.row_adapter = nn.LayerNorm(dim), ResidualBottleneck(dim, mid_dims, drop_rate)
        self.combine, self.head_norm = Combine(dim, 3 * depth + 1, drop_rate), OffsetNorm(dim)
        # In the published code these exist and never get a gradient; only counts and files of that code
        # need them.
        if not drop_dead:
            self.pre_norm = nn.ModuleList(nn.LayerNorm(dim) for _ in self.layers)
            self.row_weight = nn.Parameter(torch.ones(3 * depth + 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Queries uniform in (-1, 1), scales as configured, torch's defaults elsewhere, zero offsets of the head
        norm."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm, QSM, OffsetNorm)):
                module.reset_parameters()
        nn.init.uniform_(self.queries, -1, 1)
        nn.init.constant_(self.feat_scale, self.start)

    @property
    def side_reads(self) -> Tuple[str, ...]:  # type: ignore[override]
        """What is read of every block."""
        return self.memory.reads

    def bind(self, blocks: Sequence[Any]) -> None:
        super().bind(blocks)
        self.memory.settle(blocks)

    def _query(self, at: int, block: Any, read: Mapping[str, Tensor], all_: Optional[QSMs], queries: Queries,
               before: Optional[Tensor]) -> Tuple[Optional[Tensor], Tensor, Tensor, Tensor]:
        """The mean of the previous block's outputs (B, C) or None -> itself, and of this block that of the outputs
        (B, C), h (B, P, C) and the mean of hh (B, C). ``at`` counts the blocks that are read; ``all_`` None: modules by
        themselves."""
        modules = self.blocks[str(self.layers[at])]
        p, before = queries.enter(at, batch_size(read), before)
        place = 0 if all_ is None else at
        all_ = self._side_by_side(self.layers[at]) if all_ is None else all_
        p = self.drop(modules['qsm'](modules['adapter'](p, all_.wide, place), all_, place))
        r, h, hh = block.through(p, read, averaged=True, join=partial(queries.join, at))
        return before, queries.leave(at, r, hh), h, hh.squeeze(1)

    def _side_by_side(self, *layers: int) -> QSMs:
        modules = [self.blocks[str(i)] for i in layers]
        return QSMs([m['qsm'] for m in modules], self.half, [m['adapter'] for m in modules])

    def _combine(self, rows: Tensor) -> Tensor:
        """(B, 3 L + 1, C) -> (B, C)."""
        adapter = Bottlenecks([[self.row_adapter]], self.half)
        rows = rows + self.row_adapter(self.half.norm(self.row_norm, rows), adapter)
        if self.training and self.row_drop_rate:
            keep = 1 - self.row_drop_rate
            kept = rows.new_empty(len(rows), rows.shape[1] - 1, 1).bernoulli_(keep) / keep
            rows = rows * F.pad(kept, (0, 0, 1, 0), value=1.)  # the first row stays
        return self.combine(rows, self.half)

    def on_side(self, reads: Sequence[Mapping[str, Tensor]], blocks: Sequence[Any]) -> Tensor:
        """What every block gave to read: k and v (B, heads, N, head_dim), or u (B, N, C) -> feature (B, C)."""
        queries = Queries(self.half(self.queries), self.half(self.feat_scale))
        again, before, found = self.memory.recomputes, None, []
        all_ = None if again else self._side_by_side(*self.layers)  # its stacks would be kept
        for at, i in enumerate(self.layers):
            last, before, *means = recompute(again, self._query, at, blocks[i], reads[i], all_, queries, before)
            found.append((last, *means))
        q, h, hh = zip(*found)
        q = (before, *q[1:], before)
        # Means, of h by one kernel for all blocks.
        means = torch.cat([*(t[:, None] for t in q), torch.stack(h, 1).mean(2), *(t[:, None] for t in hh)], 1)
        return self.head_norm(recompute(again, self._combine, means), blocks[-1].final_norm)
