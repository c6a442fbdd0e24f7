# SPDX-License-Identifier: Apache-2.0
"""Attention inside windows over two axes, with a bias of places: what the Swins of mmpretrain and timm share."""

import math
from functools import partial
from typing import Any, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import LOOK_UP, recomputed
from .attention import KeysValues, Projections, SplitBias, attend_windows, gate_bias, join_extra, relative_position_bias
from .block import SitedBlock
from .windows import Size, from_windows, shift_mask, to_windows


class WindowProjections(Projections):
    """Mixin: (B * windows, P + N, C) -> same shape, P prompts in front of the N tokens of every window."""

    num_heads: int
    scale: float
    training: bool
    attn_drop: nn.Dropout
    proj_drop: nn.Module
    relative_position_index: Tensor
    relative_position_bias_table: nn.Parameter

    def place_bias(self) -> Tensor:
        """What places add to the logits, (h, N, N)."""
        return recomputed(
            relative_position_bias, self.relative_position_bias_table, self.relative_position_index, level=LOOK_UP)

    @property
    def factor(self) -> Optional[float]:
        """Factor of the logits."""
        return self.scale

    @property
    def attention_drop_rate(self) -> float:
        """Dropout on the attention weights."""
        return self.attn_drop.p

    def meet(self, op: str, x: Tensor) -> Tensor:
        """Queries or keys (..., C) as they enter the logits."""
        return x

    def channels(self, tokens: int) -> KeysValues:
        """Further channels of queries and keys, (h, P + N, R) each, as they enter the logits."""
        return self.tap.channels(tokens)

    def _of_prompts(self, prompts: Optional[Tensor]) -> KeysValues:
        found = self.of_prompts(prompts)
        return None if found is None else (self.meet('k', found[0]), found[1])

    def inside(self,
               x: Tensor,
               mask: Optional[Tensor],
               windows: Sequence[int],
               shifted: Sequence[bool],
               tokens: int = 0,
               prompts: Optional[Tensor] = None) -> Tensor:
        """Attention with its output projection.

        Args:
            x: (B * windows, P + N, C).
            mask: Shift mask (windows, N, N), or None.
            windows: Windows along height and width.
            shifted: Which axes of the grid were rolled.
            tokens: P.
            prompts: (1 or B, P, C), prompts that act as keys and values only, or None.

        Returns:
            (B * windows, P + N, C).
        """
        q, k, v = self.project(x)
        q, k = self.meet('q', q), self.meet('k', k)
        extra = join_extra(self.tap, self._of_prompts(prompts), self.num_heads)
        extra_keys = 0 if extra is None else extra[0].shape[-2]
        gate = gate_bias(self.tap, extra_keys + k.shape[1], 0 if prompts is not None else extra_keys)
        if gate is not None and len(gate) > 1:
            # Windows of a sample stand together, so each sample's gate is repeated once per window.
            gate = gate.repeat_interleave(math.prod(windows), 0)
        y = attend_windows(
            q, k, v, self.num_heads, self.place_bias(), mask, windows, shifted, tokens, extra,
            self.attention_drop_rate if self.training else 0., self.factor, gate, self.channels(k.shape[1]))
        return self.proj_drop(self.output(y))

    forward: Any = inside


class WindowBlock(SitedBlock):
    """Mixin: block whose attention looks inside windows, over B grids of H * W tokens without prompts; the first of
    what it is called with besides is (H, W)."""

    # A bias of (heads, N, N) for every block and group of windows is looked up from a small table.
    least_level = LOOK_UP
    #: Whether upstream rolls the grid before it pads it.
    roll_first = False

    def window_of(self, grid: Size) -> Tuple[Size, Size]:
        """Window and cyclic shift over a grid (H, W), as upstream chooses them."""
        raise NotImplementedError

    def mask_of(self, h: Tensor, padded: Size, size: Size, shift: Size) -> Tensor:
        """Shift mask (windows, N, N) of h (B, H * W, C), whose grid is padded to ``padded``."""
        return shift_mask(padded, size, shift, h.device)

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """h (B, H * W, C), prompts as keys and values only (1 or B, P, C) -> (B, H * W, C)."""
        grid = tuple(context[0])
        size, shift = self.window_of(grid)
        windows, shifted = tuple(-(-g // s) for g, s in zip(grid, size)), tuple(s > 0 for s in shift)
        x = recomputed(to_windows, h, grid, size, shift, self.roll_first)
        padded = tuple(n * s for n, s in zip(windows, size))
        mask = self.mask_of(h, padded, size, shift) if any(shifted) else None
        x = self.attn(x, mask, windows, shifted, 0, prompts)
        return recomputed(from_windows, x, grid, size, shift, self.roll_first)

    def grid_of(self, x: Tensor, *context: Any) -> Tuple[int, ...]:
        """The grid (H, W) of x (B, H * W, C)."""
        return tuple(context[0])


def cosine(x: Tensor, heads: int, logit_scale: Optional[Tensor]) -> Tensor:
    """Every head of x (..., C) at length one, times its factor of the logits where ``logit_scale`` (h, 1, 1) is given,
    which holds its logarithm and is cut off at that of 100."""
    y = F.normalize(x.unflatten(-1, (heads, -1)), dim=-1)
    if logit_scale is not None:
        y = y * torch.clamp(logit_scale, max=math.log(100.)).exp()[..., 0]
    return y.flatten(-2).type_as(x)


def continuous_bias(network: nn.Module, coordinates: Tensor, index: Tensor) -> Tensor:
    """Biases of places (h, N, N) from a network over log-spaced distances (1, 2 H - 1, 2 W - 1, 2), 0 to 16.

    Liu et al., "Swin Transformer V2", https://arxiv.org/abs/2111.09883, section 3.3.
    """
    return 16 * torch.sigmoid(relative_position_bias(network(coordinates).flatten(0, -2), index))


class CosineWindowProjections(SplitBias, WindowProjections):
    """Mixin: Swin V2's attention. Prompts are normed as tokens are; keys that a method brings stay as they are."""

    logit_scale: nn.Parameter
    cpb_mlp: nn.Module
    relative_coords_table: Tensor

    def place_bias(self) -> Tensor:
        """What places add to the logits, (h, N, N)."""
        made = partial(continuous_bias, self.cpb_mlp)
        return recomputed(made, self.relative_coords_table, self.relative_position_index, level=LOOK_UP)

    @property
    def factor(self) -> Optional[float]:
        return 1.

    def channels(self, tokens: int) -> KeysValues:
        """As above, with the factor of plain attention, which the logits of unit keys do not have."""
        found = self.tap.channels(tokens)
        return None if found is None else (found[0] * (self.proj.in_features // self.num_heads)**-0.5, found[1])

    def meet(self, op: str, x: Tensor) -> Tensor:
        """Queries or keys (..., C), every head at length one; queries carry the factor of the logits."""
        return cosine(x, self.num_heads, self.logit_scale if op == 'q' else None)
