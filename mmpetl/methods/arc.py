# SPDX-License-Identifier: Apache-2.0
"""ARC: one symmetric bottleneck for all blocks, re-scaled by each.

Dong et al., "Efficient Adaptation of Large Vision Transformer via Adapter Re-Composing",
https://arxiv.org/abs/2310.06234, section 3::

    z <- z + U (c * dropout(U^T z)) + b        z: the normed input of the sublayer

``U`` (C, mid_dims) is one for all blocks, one before attention and one before the feed-forward network; up-projection
and down-projection are transposes of each other. A block owns ``c`` (mid_dims) and ``b`` (C). As RepAdapter it has no
activation and merges into the layers behind it. ``U`` is Xavier-uniform, ``b`` zero. In the released code ``c`` starts
at zero before attention and Xavier-uniform before the feed-forward network, so the start is near the frozen network
only.
"""

from typing import Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import SUBS, BlockSpec, Layers, Method, add_product, check_ops, positive
from .rep_adapter import NORM_OF, SUB_OF, keeps, merge_before


@METHODS.register_module()
class ARC(Method):
    """Adapter re-composing.

    Args:
        specs: Blocks of the backbone. Blocks of the same width share their projection.
        mid_dims: Hidden width.
        drop_rate: Dropout on the hidden units.
        init: Start of ``c`` before the feed-forward network: 'released' (Xavier-uniform) or 'zero' (exact start).
        subs: Sublayers before which an adapter stands.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``mid_dims`` < 1, ``init`` or a sublayer is unknown, or a block lies outside the backbone.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 mid_dims: int = 50,
                 drop_rate: float = 0.,
                 init: str = 'released',
                 subs: Union[str, Sequence[str]] = SUBS,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.refuse_post_norm('are read by no layer')
        if init not in ('released', 'zero'):
            raise ValueError(f"ARC: init must be 'released' or 'zero', got {init!r}")
        self.subs, self.init = check_ops(subs, 'ARC: subs', SUBS), init
        mid = positive(mid_dims, 'mid_dims', 'ARC')
        # A set in the order of the blocks: parameters must come in the same order in every run.
        widths = dict.fromkeys(self._width(i, sub) for i in self.layers for sub in self.subs)
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        # Named by width: a hierarchical backbone has one projection per stage width, a plain one has one.
        self.shared = nn.ParameterDict({f'{sub}_{dim}': torch.empty(dim, mid) for dim in widths for sub in self.subs})
        self.blocks = self.for_parts(self.subs, lambda i, sub: nn.ParameterDict(
            dict(scale=torch.empty(mid), bias=torch.empty(self._width(i, sub)))))
        self.reset_parameters()

    def _width(self, i: int, sub: str) -> int:
        return self.specs[i].op_dims(NORM_OF[sub])[1]

    def norm_ops(self, index: int) -> Tuple[str, ...]:
        return tuple(NORM_OF[sub] for sub in self.subs)

    def reset_parameters(self) -> None:
        for parameter in self.shared.values():
            nn.init.xavier_uniform_(parameter)
        for block in self.blocks.values():
            for sub, own in block.items():
                nn.init.zeros_(own['bias'])
                if sub == 'ffn' and self.init == 'released':
                    # As one row of a matrix, as the released code draws it; a vector has no fans.
                    nn.init.xavier_uniform_(own['scale'][None])
                else:
                    nn.init.zeros_(own['scale'])

    def parts(self, i: int, sub: str) -> Tuple[Tensor, Tensor, Tensor]:
        """U (C, mid_dims), c (mid_dims) and b (C)."""
        own = self.blocks[str(i)][sub]
        return self.shared[f'{sub}_{self._width(i, sub)}'], own['scale'], own['bias']

    def on_norm(self, i: int, op: str, y: Tensor) -> Tensor:
        """y (..., C) -> y + U (c * dropout(U^T y)) + b, (..., C)."""
        shared, scale, bias = (self.half(p) for p in self.parts(i, SUB_OF[op]))
        y = recomputed(Tensor.to, y, shared.dtype)  # once, not once per reader
        # c scales the small matrix instead of the code, so that nothing of the tokens' size is kept for its
        # gradient.
        code = recomputed(F.linear, y, (shared * scale).t(), level=SMALL_PRODUCT)
        return add_product(y, self.drop(code), shared, 1., bias)

    def fold_norm(self, i: int, op: str, weight: Tensor,
                  bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """weight (Cout, C), bias (Cout) -> same shapes."""
        # q, k and v of a padded window read zeros that never passed the norm, so b must not reach them; no
        # weight can tell them apart.
        if op in 'qkv' and keeps(self.specs[i]):
            return None
        shared, scale, shift = (p.to(weight) for p in self.parts(i, SUB_OF[op]))
        return merge_before(weight, bias, shared * scale, shared.t(), shift)
