# SPDX-License-Identifier: Apache-2.0
"""Sited patch embeddings and final norms: the places of SSF's first and last operation and of prompt pooling."""

from typing import Tuple

import torch
from mmcv.cnn.bricks.transformer import PatchEmbed
from torch import Tensor, nn

from ..sites import Tap


class SitedPatchEmbed(PatchEmbed):
    """Patch embedding of ViT, CLIP, VideoMAE and Swin: (B, 3, [T,] H, W) -> (B, N, C) and the grid."""

    tap: Tap

    def forward(self, x: Tensor) -> Tuple[Tensor, Tuple[int, ...]]:
        """x (B, 3, [T,] H, W) -> tokens (B, N, C) and their grid, two or three sizes."""
        x, grid = super().forward(x)
        if isinstance(self.projection, nn.Conv3d):  # upstream's grid has no width then
            grid = (*grid, x.shape[1] // (grid[0] * grid[1]))
        # For all blocks at once: their taps share this object.
        self.tap.run_time.grid = tuple(grid)
        return self.tap.norm('embed', x), grid


class SitedEntry(nn.Dropout):
    """The dropout behind the position table: the last module before the first norm."""

    tap: Tap

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> (B, N, C)."""
        # The first block has not bound them yet.
        self.tap.grid, self.tap.frames = self.tap.run_time.grid, self.tap.run_time.frames
        return self.tap.entry(super().forward(x))


class SitedFinalNorm(nn.LayerNorm):
    """The last norm. Prompts that are pooled with the grid tokens are merged here.

    A later mean over the L grid tokens must equal the mean over P prompts and L grid tokens, so each grid token becomes
    (L * token + sum of prompts) / (P + L); where prompts alone are pooled, their mean. That keeps the feature map's
    shape, whatever neck follows.
    """

    tap: Tap
    merges_prompts: bool

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, C), or (..., C) where no prompts are pooled -> same shape, (B, N - P, C) once P prompts are
        merged."""
        if self.tap.run_time.mean_first:
            x = x.unflatten(0, (-1, self.tap.run_time.frames)).mean(1)
        y = self.tap.norm('final', super().forward(x))
        pooled = self.tap.prompts_pooled
        if not (pooled and self.merges_prompts):
            return y
        # Without a class token, so prompts come first.
        prompts, tokens = y.split([pooled, y.shape[1] - pooled], 1)
        if self.tap.prompts_alone:
            return prompts.mean(1, keepdim=True).expand_as(tokens)
        return (tokens * tokens.shape[1] + prompts.sum(1, keepdim=True)) / y.shape[1]


def linear_slice(weight: Tensor, op: str) -> Tensor:
    """Rows of q, k or v in a fused weight (3 C, Cin) or bias (3 C) -> (C, Cin) or (C), a view."""
    # All upstream attentions fuse in this order, rows first.
    return weight.chunk(3, 0)['qkv'.index(op)]


def write(target: Tensor, value: Tensor) -> None:
    """Copy ``value`` (...) into a parameter (or a view of one) of the same shape, in place."""
    with torch.no_grad():
        target.copy_(value)
