# SPDX-License-Identifier: Apache-2.0
"""PATT: parallel attention, input-dependent additions to queries, keys and values.

Yu et al., "Towards a Unified View on Visual Parameter-Efficient Transfer Learning", https://arxiv.org/abs/2210.00788::

    a = W_up tanh(W_down x + b_down) + b_up,    k <- k + scale * a_0,  v <- v + scale * a_1    (ops='kv')

``x`` is the normed input of the attention. The parts of ``a`` follow the order q, k, v of the chosen ops.
"""

from typing import Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import BlockSpec, Layers, Method, PerLayer, check_ops, positive


@METHODS.register_module()
class PATT(Method):
    """Parallel attention.

    Args:
        specs: Blocks of the backbone.
        ops: Two or three of q, k, v: 'kv' (the paper's), 'qv', 'qk' or 'qkv'; single ones are allowed too.
        mid_dims: Bottleneck width; per layer where wanted.
        scale: Factor of the addition; per layer where wanted.
        init: 'default' (torch's Linear initialisation, the published one: the start is not the identity) or 'zero_up'
            (zero up-projection: the start is exactly the frozen network).
        layers: Adapted blocks.

    Raises:
        ValueError: If ``mid_dims`` < 1 or an op or ``init`` is unknown.
    """

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 ops: Union[str, Sequence[str]] = 'kv',
                 mid_dims: PerLayer = 128,
                 scale: PerLayer = 0.8,
                 init: str = 'default',
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if init not in ('default', 'zero_up'):
            raise ValueError(f"PATT: init must be 'default' or 'zero_up', got {init!r}")
        chosen = check_ops(ops, 'PATT: ops', 'qkv')
        # In the order q, k, v, in which the up-projection's outputs stand.
        self.ops: Tuple[str, ...] = tuple(op for op in 'qkv' if op in chosen)
        self.init = init
        self.scales, mids = self.spread(scale, 'scale'), self.spread(mid_dims, 'mid_dims', positive)
        self.blocks = self.for_blocks(lambda i: nn.ModuleDict(dict(
            down=nn.Linear(self.specs[i].entry_dim, mids[i]),
            up=nn.Linear(mids[i], len(self.ops) * self.specs[i].dim))))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            block['down'].reset_parameters()
            block['up'].reset_parameters()
            if self.init == 'zero_up':
                # Weight and bias: either alone would leave an addition at the start.
                nn.init.zeros_(block['up'].weight)
                nn.init.zeros_(block['up'].bias)

    def on_qkv(self, i: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """x, q, k, v (B, N, C) -> q, k, v (B, N, C), with scale * a added to the chosen ones."""
        block = self.blocks[str(i)]
        hidden = recomputed(torch.tanh, recomputed(self.half.linear, block['down'], x, level=SMALL_PRODUCT))
        # One wide up-projection for all ops, as published, cut afterwards.
        parts = dict(zip(self.ops, self.half.linear(block['up'], hidden).chunk(len(self.ops), -1)))
        return tuple(
            # alpha inside the sum: no scaled copy of the addition.
            torch.add(t, parts[op], alpha=self.scales[i]) if op in parts else t for op, t in zip('qkv', (q, k, v)))
