# SPDX-License-Identifier: Apache-2.0
"""AIM: an image transformer over the frames of a clip, whose frozen attention is used a second time, along time.

Yang et al., "AIM: Adapting Image Models for Efficient Video Action Recognition", https://arxiv.org/abs/2302.03024,
section 3.3::

    x <- x + A_t(attention(LN(x)))                  along the T frames of every token; A_t without skip connection
    x <- x + A_s(attention(LN(x)))                  along the tokens of every frame; A_s with skip connection
    x <- x + ffn(LN(x)) + s A_m(LN(x))              A_m without skip connection

    A(z) = W_up gelu(W_down z + b_down) + b_up, and z + A(z) with skip connection

Both attentions and norms are the base's own. With ``temporal_input`` a further adapter with skip connection stands
before the attention along time, the form for Something-Something. A table of T rows is added to the tokens of each
frame before the first block. Down-projections are drawn from N(0, 0.02^2), all else is zero: the start is exact.
"""

from typing import Sequence

from torch import Tensor
from torchvision.ops import stochastic_depth

from ..registry import METHODS
from ..sites import BlockSpec, Layers, PerLayer
from .bottleneck import Bottleneck
from .over_frames import FrameTable


@METHODS.register_module()
class AIM(FrameTable):
    """Spatial, temporal and joint adaptation of an image model.

    Args:
        specs: Blocks of a backbone for images that reads clips (``frames=T``).
        mid_dims: Hidden width of the adapters; None: a quarter of the block's, as published. Per layer where wanted.
        scale: Factor s of the joint adapter; per layer where wanted.
        temporal_input: A further adapter before the attention along time.
        drop_path_rate: Probability of dropping the temporal branch of a clip and the joint branch of a frame; per layer
            where wanted. The published runs rise from 0 to 0.2.
        layers: Adapted blocks.

    Raises:
        ValueError: If the backbone reads no clips, ``mid_dims`` < 1, or a block lies outside the backbone.
    """

    inside_drop_path = False
    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 mid_dims: PerLayer = None,
                 scale: PerLayer = 0.5,
                 temporal_input: bool = False,
                 drop_path_rate: PerLayer = 0.,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        mids = self.quarters(mid_dims)
        scales = self.spread(scale, 'scale')
        self.drop_path_rates = {i: float(r) for i, r in self.spread(drop_path_rate, 'drop_path_rate').items()}
        parts = ('time', 'space', 'joint', *(('time_in', ) if temporal_input else ()))
        self.temporal_input = temporal_input
        self.blocks = self.for_parts(parts, lambda i, part: Bottleneck(
            self.specs[i].dim, mids[i], 'gelu', 0., scales[i] if part == 'joint' else 1.,
            'none'))
        self.reset_parameters()

    def on_stream(self, i: int, x: Tensor) -> Tensor:
        """x (B T, N, C) plus the adapted attention along the frames of every token -> (B T, N, C)."""
        adapters, frames = self.blocks[str(i)], self.frames(i)
        before = adapters['time_in'] if self.temporal_input else None
        along = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)
        change = None if before is None else (lambda h: h + before(h, self.half))
        branch = adapters['time'](self.frozen_attention(i, along, change), self.half)
        branch = branch.unflatten(0, (-1, x.shape[1])).transpose(1, 2)
        if self.training and self.drop_path_rates[i] > 0:
            branch = stochastic_depth(branch, self.drop_path_rates[i], 'row')
        return x + branch.flatten(0, 1)

    def on_branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """x, y (B T, N, C) -> y + A_s(y) after attention, y + s A_m(x) after the feed-forward network, (B T, N, C)."""
        adapters = self.blocks[str(i)]
        if sub == 'attn':
            return y + adapters['space'](y, self.half)
        branch = adapters['joint'](x, self.half)
        if self.training and self.drop_path_rates[i] > 0:
            branch = stochastic_depth(branch, self.drop_path_rates[i], 'row')
        return y + branch
