# SPDX-License-Identifier: Apache-2.0
"""Side4Video: a narrow network over the patches of all frames of a clip, beside a frozen image transformer.

Yao et al., "Side4Video: Spatial-Temporal Side Network for Memory-Efficient Image-to-Video Transfer Learning",
https://arxiv.org/abs/2311.15769, in the form of the published code. With x_l what block l gives for the frames, its
class token c_l, and d the width of the side network::

    s <- BN(conv_(3 x p x p)(clip))                             d channels per patch of p x p pixels, 3 frames
    u, c = W_l LN(x_l), W_l LN(c_l);  s <- (s + u) / 2
    s <- s + W_3 dw_(3 x 1 x 1)(W_2 BN(s))                      a depth-wise convolution along time, biases all over
    s <- s + attention(LN(s + P); LN([shift(c) ; s + P]))       patches ask; keys and values: class token and patches
    s <- s + W_5 gelu(W_4 BN(s))
    feature = mean over frames and patches of BN(s)

``shift`` gives the first half of the channels of a frame's class token those of the next frame, the other half those of
the frame before; zeros where there is none. P is one table of positions for all blocks. No gradient enters the frozen
network. Its class token is all that the side network sees of whole frames, and the feature is d wide.
"""

import math
from typing import Any, Mapping, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import METHODS
from ..sites import BlockSpec, HalfCopies, Layers, positive
from .over_frames import OverFrames
from .vqt import one_width


class GridNorm(nn.BatchNorm1d):
    """BatchNorm of the channels over clips, frames and patches; x (..., d) -> (..., d)."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) -> (..., d)."""
        return super().forward(x.flatten(0, -2)).view_as(x)


def shift(token: Tensor) -> Tensor:
    """Class tokens (B, T, d) -> first half of the channels from the next frame, the other half from the one before."""
    half = token.shape[-1] // 2
    after, before = token[..., :half], token[..., half:]
    return torch.cat([F.pad(after[:, 1:], (0, 0, 0, 1)), F.pad(before[:, :-1], (0, 0, 1, 0))], -1)


class Side4VideoBlock(nn.Module):
    """One block of the side network.

    Args:
        dim: Width C of the frozen blocks.
        width: Width d of the side network.
        heads: Attention heads.
    """

    def __init__(self, dim: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.read_norm, self.read = nn.LayerNorm(dim), nn.Linear(dim, width)
        self.conv_norm, self.conv_in = GridNorm(width), nn.Linear(width, width)
        self.conv, self.conv_out = nn.Conv1d(width, width, 3, padding=1, groups=width), nn.Linear(width, width)
        self.attn_norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ffn_norm, self.fc1, self.fc2 = GridNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def reset_parameters(self) -> None:
        """The published start: CLIP's, of 12 blocks, for attention and feed-forward network, torch's for the rest."""
        for module in self.children():
            module.reset_parameters()  # type: ignore[operator]
        width = self.proj.in_features
        inner, outer = (2 * width)**-0.5, (24 * width)**-0.5
        for linear, std in ((self.read, inner), (self.qkv, width**-0.5), (self.proj, outer), (self.fc1, inner),
                            (self.fc2, outer)):
            nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def _along_time(self, h: Tensor, frames: int, half: HalfCopies) -> Tensor:
        """h (B T, N, d) -> convolved over the T frames of every patch, (B T, N, d)."""
        h = half.linear(self.conv_in, h).unflatten(0, (-1, frames))
        rows = h.permute(0, 2, 3, 1).flatten(0, 1)
        rows = F.conv1d(rows, half(self.conv.weight), half(self.conv.bias), padding=1, groups=rows.shape[1])
        h = rows.unflatten(0, (len(h), -1)).permute(0, 3, 1, 2).flatten(0, 1)
        return half.linear(self.conv_out, h)

    def _attend(self, h: Tensor, half: HalfCopies) -> Tensor:
        """Class token and patches h (B T, 1 + N, d) -> what the patches gather, (B T, N, d)."""
        q, k, v = half.linear(self.qkv, h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return half.linear(self.proj, F.scaled_dot_product_attention(q[:, :, 1:], k, v).transpose(1, 2).flatten(2))

    def forward(self, s: Tensor, x: Tensor, positions: Tensor, frames: int, half: HalfCopies) -> Tensor:
        """State s (B T, N, d), output of a frozen block x (B T, 1 + N, C), table (N, d) -> next state (B T, N, d)."""
        read = half.linear(self.read, self.read_norm(x))
        s = (s + read[:, -s.shape[1]:]) / 2
        s = s + self._along_time(self.conv_norm(s), frames, half)
        token = shift(read[:, 0].unflatten(0, (-1, frames))).flatten(0, 1)
        s = s + self._attend(self.attn_norm(torch.cat([token[:, None].to(s.dtype), s + positions], 1)), half)
        return s + half.linear(self.fc2, F.gelu(half.linear(self.fc1, self.ffn_norm(s))))


@METHODS.register_module()
class Side4Video(OverFrames):
    """Spatial-temporal side network; the feature is ``width`` wide.

    Args:
        specs: Blocks of a backbone for images that reads clips (``frames=T``).
        width: d; 320 is published for ViT-B.
        heads: Attention heads of the side network; None: d / 64, as published.
        layers: Blocks that are read; the others have no block of the side network.

    Raises:
        ValueError: If the backbone reads no clips or has no class token, the blocks differ in width, ``width`` does not
            divide by 2 and by the heads, or a block lies outside the backbone.
    """

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 width: int = 320,
                 heads: Optional[int] = None,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        dim, first = one_width(specs, 'Side4Video'), self.specs[0]
        if not first.extra_tokens:
            raise ValueError('Side4Video: needs a class token, whose shifted form the patches of a frame see')
        positive(width, 'width', 'Side4Video')
        heads = max(width // 64, 1) if heads is None else positive(heads, 'heads', 'Side4Video')
        if width % 2 or width % heads:
            raise ValueError(f'Side4Video: width={width} must divide by 2 and by its {heads} heads')
        # The output of a block is the input of the next, so only the last block's must be kept on its own.
        self.side_reads = ('input', 'x', 'out') if len(specs) - 1 in self.layers else ('input', 'x')
        self.width, (h, w) = width, first.patch
        # Patches of p x p pixels of three frames.
        self.stem, self.stem_norm = nn.Conv3d(3, width, (3, h, w), (1, h, w), (1, 0, 0)), GridNorm(width)
        self.table = nn.Parameter(torch.empty(math.prod(first.grid), width))
        self.blocks = self.for_blocks(lambda i: Side4VideoBlock(dim, width, heads))
        self.norm = GridNorm(width)
        self.reset_parameters()

    @property
    def out_dims(self) -> int:
        """Width of the feature."""
        return self.width

    def active(self, point: str, index: int) -> bool:
        # The output of block i is the input of block i + 1.
        return point == 'side' and index - 1 in self.layers

    def reset_parameters(self) -> None:
        """As published: the table from N(0, 0.01^2), for the blocks see theirs, torch's start elsewhere."""
        for module in (self.stem, self.stem_norm, *self.blocks.values(), self.norm):
            module.reset_parameters()
        nn.init.normal_(self.table, std=0.01)

    def on_side(self, reads: Sequence[Mapping[str, Tensor]], blocks: Sequence[Any]) -> Tensor:
        """Clips ``input`` (B, 3, T, H, W), block inputs ``x`` and the last block's ``out`` (B T, 1 + N, C) -> feature
        (B, d).

        Raises:
            ValueError: If clips have another size than that for which the backbone was built.
        """
        clip, outputs = reads[0]['input'], [*(read.get('x') for read in reads[1:]), reads[-1].get('out')]
        s = self.stem(clip).permute(0, 2, 3, 4, 1).flatten(2, 3)  # (B, T, N, d)
        if s.shape[2] != len(self.table):
            raise ValueError(f'Side4Video: made for frames of {len(self.table)} patches, got {s.shape[2]}: set '
                             'img_size of the backbone')
        s = self.stem_norm(s).flatten(0, 1)
        for i in self.layers:
            s = self.blocks[str(i)](s, outputs[i], self.table, clip.shape[2], self.half)
        return self.norm(s).unflatten(0, (len(clip), -1)).mean((1, 2))
