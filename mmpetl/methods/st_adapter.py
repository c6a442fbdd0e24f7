# SPDX-License-Identifier: Apache-2.0
"""ST-Adapter: a depth-wise convolution over time and space in a bottleneck, before a sublayer.

Pan et al., "ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning", https://arxiv.org/abs/2206.13559,
equation 4; the published code has no activation in it::

    x <- x + W_up conv3d(W_down x + b_down) + b_up        x: the grid tokens of the stream before the sublayer

The convolution and all biases are zero at the start, so it is exact. Tokens in front of the grid (class token, prompts)
pass by. The paper adapts CLIP's image tower over the frames of a clip: ``frames=T`` of the backbone.
"""

import math
from typing import Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import (
    AS_THEY_ARE,
    SUBS,
    BlockSpec,
    HalfCopies,
    Layers,
    Method,
    PerLayer,
    autocast_dtype,
    beside,
    check_ops,
    positive,
    sum_as,
)


class SpaceTimeBottleneck(nn.Module):
    """The branch of one sublayer."""

    def __init__(self, dim: int, mid_dims: int, kernel: Tuple[int, int, int]) -> None:
        super().__init__()
        self.down = nn.Linear(dim, mid_dims)
        # Depth-wise: groups of one channel. Odd kernels with half their size as padding keep the grid.
        self.conv = nn.Conv3d(mid_dims, mid_dims, kernel, padding=tuple(k // 2 for k in kernel), groups=mid_dims)
        self.up = nn.Linear(mid_dims, dim)

    def reset_parameters(self) -> None:
        """Torch's default for both linears; convolution and biases zero."""
        for layer in (self.down, self.up):
            layer.reset_parameters()
        # The convolution is zero, not the up-projection: as published, and exact just the same.
        for zero in (self.conv.weight, self.conv.bias, self.down.bias, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, grid: Tuple[int, ...], frames: int = 0, half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """x (B, front + T * H * W, C), or (B, T, H, W, C), with the grid (T, H, W), or the frames
        (B T, front + H * W, C) of clips of ``frames`` with the grid (H, W) -> same shape."""
        front = 0 if x.dim() == 5 else x.shape[1] - math.prod(grid)  # Video Swin's stream is a grid already
        # Only the grid tokens pass the down-projection; the others would be thrown away.
        z = recomputed(F.linear, x[:, front:] if front else x, half(self.down.weight), half(self.down.bias),
                       level=SMALL_PRODUCT)
        clip = z if x.dim() == 5 else z.unflatten(1, grid)
        clip = clip.unflatten(0, (-1, frames)) if frames else clip
        conv, clip = self.conv, clip.movedim(-1, 1)
        if clip.is_cpu and torch.bfloat16 in (clip.dtype, autocast_dtype(clip)):
            # Of channels that lie last, oneDNN's gradient of the weight in bfloat16 holds uninitialised memory.
            clip = clip.contiguous()
        mixed = F.conv3d(clip, half(conv.weight), half(conv.bias), padding=conv.padding,
                         groups=conv.groups)
        y = half.linear(self.up, mixed.movedim(1, -1).reshape(z.shape))
        # Zeros for the tokens in front: the caller adds the result to the whole stream.
        return F.pad(y, (0, 0, front, 0)) if front else y


@METHODS.register_module()
class STAdapter(Method):
    """Space-time adapter.

    Args:
        specs: Blocks of the backbone; their token grid must be (T, H, W), or the backbone reads clips frame by frame.
        mid_dims: Channels of the convolution; per layer where wanted.
        kernel: Size of the convolution, three odd numbers (t, h, w).
        subs: Sublayers before which an adapter stands, 'attn', 'ffn' or both.
        layers: Adapted blocks.

    Raises:
        ValueError: If the token grid is not (T, H, W), ``mid_dims`` < 1, or ``kernel`` or ``subs`` is not as above.
    """

    inside_drop_path = False
    over_time = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 mid_dims: PerLayer = 384,
                 kernel: Sequence[int] = (3, 1, 1),
                 subs: Union[str, Sequence[str]] = 'attn',
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.subs = check_ops(subs, 'STAdapter: subs', SUBS)
        # A kernel of another length becomes (0, 0, 0), which the next line refuses with the value that was
        # given.
        t, h, w = size = (*kernel, )[:3] if len(kernel) == 3 else (0, 0, 0)
        if not all(isinstance(k, int) and k > 0 and k % 2 for k in size):
            raise ValueError(f'STAdapter: kernel must be three odd numbers (t, h, w), got {kernel!r}')
        for i in self.layers:
            spec = self.specs[i]
            if len(spec.grid or spec.window or ()) != 3 and not (spec.frames and len(spec.grid) == 2):
                raise ValueError(f'STAdapter: needs a (T, H, W) token grid, but block {i} of the backbone has '
                                 f'{self.specs[i].grid or "none"}')
        mids = self.spread(mid_dims, 'mid_dims', positive)
        self.blocks = self.for_parts(
            self.subs, lambda i, sub: SpaceTimeBottleneck(
                self.specs[i].entry_dim if sub == 'attn' else self.specs[i].dim, mids[i], (t, h, w)))
        self.reset_parameters()

    def active(self, point: str, index: int) -> bool:
        # Before attention is the block's entry; before the feed-forward network is behind attention.
        return super().active(point, index) and dict(stream='attn', branch='ffn')[point] in self.subs

    def branch_subs(self, index: int) -> Tuple[str, ...]:
        # What stands before the feed-forward sublayer acts on the stream that leaves attention.
        return ('attn', )

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for bottleneck in block.values():
                bottleneck.reset_parameters()

    def on_stream(self, i: int, x: Tensor) -> Tensor:
        """x (B, front + T * H * W, C) or (B, T, H, W, C), the stream before attention -> same shape."""
        x, half = beside(x)
        return x + self.blocks[str(i)]['attn'](half, self.grid(i), self.frames(i), self.half)

    def on_branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """residual, y, as :meth:`on_stream`, (B, front + T * H * W, C) or (B, T, H, W, C): y and the branch of the
        stream after attention."""
        x = sum_as(residual, y, autocast_dtype(y))
        return y + self.blocks[str(i)]['ffn'](x, self.grid(i), self.frames(i), self.half)
