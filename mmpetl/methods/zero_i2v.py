# SPDX-License-Identifier: Apache-2.0
"""ZeroI2V: an image transformer over the frames of a clip, some of whose heads look at neighbouring frames.

Li et al., "ZeroI2V: Zero-Cost Adaptation of Pre-trained Transformers from Image to Video",
https://arxiv.org/abs/2310.01324::

    x <- x + A_2(attention(A_1(LN(x))))        head h reads keys and values of frame t + offsets[h]
    x <- x + A_4(ffn(A_3(LN(x))))              A(z) = z + s (W_up dropout(W_down z + b_down) + b_up)

The adapters are linear and stand next to linear layers. Of the heads, the first look at other frames, one offset each;
a head whose frame is not there reads its own. A table of T rows is added to the tokens of each frame before the first
block. Down-projections are drawn from N(0, 0.02^2), all else is zero: what changes at the start is where heads look.
"""

from typing import Dict, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import BlockSpec, Layers, PerLayer, add_product
from .over_frames import FrameTable

#: Where each adapter stands.
PART_OF = dict(norm1='attn_in', proj='attn_out', norm2='ffn_in', fc2='ffn_out')


class LinearAdapter(nn.Module):
    """``down`` (mid, C) and ``up`` (C, mid) with their biases."""

    def __init__(self, dim: int, mid_dims: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, mid_dims), nn.Linear(mid_dims, dim)


@METHODS.register_module()
class ZeroI2V(FrameTable):
    """Spatial-temporal dual-headed attention and linear adapters.

    Args:
        specs: Blocks of a backbone for images that reads clips (``frames=T``).
        mid_dims: Hidden width of the adapters; None: a quarter of the block's, as published. Per layer where wanted.
        scale: Factor s; per layer where wanted.
        offsets: Frames to which the first heads look, one number per head: -1 is the frame before.
        ffn_out: Whether an adapter stands behind the feed-forward network too (A_4).
        drop_rate: Dropout on the hidden units.
        layers: Adapted blocks.

    Raises:
        ValueError: If the backbone reads no clips or has fewer heads than offsets, an offset is 0, ``mid_dims`` < 1, or
            a block lies outside the backbone.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 mid_dims: PerLayer = None,
                 scale: PerLayer = 0.5,
                 offsets: Sequence[int] = (-1, 1),
                 ffn_out: bool = True,
                 drop_rate: float = 0.1,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        heads = min(self.specs[i].heads for i in self.layers)
        self.offsets: Tuple[int, ...] = tuple(offsets)
        if not 0 < len(self.offsets) <= heads or 0 in self.offsets:
            raise ValueError(f'ZeroI2V: offsets={offsets!r}: give one number other than 0 for each of the first heads, '
                             f'of which there are {heads}')
        mids = self.quarters(mid_dims)
        self.scales = {i: float(s) for i, s in self.spread(scale, 'scale').items()}
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.parts = ('attn_in', 'attn_out', 'ffn_in', *(('ffn_out', ) if ffn_out else ()))
        self.blocks = self.for_parts(self.parts, lambda i, part: LinearAdapter(self.specs[i].dim, mids[i]))
        self.reset_parameters()

    def linear_ops(self, index: int) -> Tuple[str, ...]:
        return ('proj', 'fc2') if 'ffn_out' in self.parts else ('proj', )

    def norm_ops(self, index: int) -> Tuple[str, ...]:
        return ('norm1', 'norm2')

    def on_qkv(self, i: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B T, N, C) -> the same, keys and values of the first heads taken from other frames."""
        frames, width = self.frames(i), self.specs[i].head_dim
        moved: Dict[str, Tensor] = {}
        for name, value in (('k', k), ('v', v)):
            clips = value.unflatten(0, (-1, frames))
            # One copy for each head that looks elsewhere, and one for all.
            parts = [_shifted(clips[..., h * width:(h + 1) * width], offset) for h, offset in enumerate(self.offsets)]
            moved[name] = torch.cat([*parts, clips[..., len(parts) * width:]], -1).flatten(0, 1)
        return q, moved['k'], moved['v']

    def _adapt(self, i: int, part: str, z: Tensor) -> Tensor:
        adapter = self.blocks[str(i)][part]
        down, bias, up, up_bias = (
            self.half(p) for p in (adapter.down.weight, adapter.down.bias, adapter.up.weight, adapter.up.bias))
        z = recomputed(Tensor.to, z, down.dtype)  # once, not once per reader
        code = self.drop(recomputed(F.linear, z, down, bias, level=SMALL_PRODUCT))
        return add_product(z, code, up, self.scales[i], up_bias)

    def on_norm(self, i: int, op: str, y: Tensor) -> Tensor:
        """y (..., C) -> A(y), (..., C)."""
        return self._adapt(i, PART_OF[op], y)

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """y (..., C), the output of proj or fc2 -> A(y), (..., C)."""
        return self._adapt(i, PART_OF[op], y)


def _shifted(clips: Tensor, offset: int) -> Tensor:
    """Frames (B, T, N, d) -> for each the frame ``offset`` behind it, or itself where there is none. By slices: indices
    would be copied to the device in every pass."""
    frames, steps = clips.shape[1], abs(offset)
    if not 0 < steps < frames:
        return clips
    if offset > 0:
        return torch.cat([clips[:, steps:], clips[:, frames - steps:]], 1)
    return torch.cat([clips[:, :steps], clips[:, :frames - steps]], 1)
