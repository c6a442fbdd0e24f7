# SPDX-License-Identifier: Apache-2.0
"""Tables whose size follows the input: position embeddings and relative-position biases."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange


def square(length: int) -> int | None:
    """Side of a square grid of ``length`` cells, or None."""
    side = math.isqrt(length) if length > 0 else 0
    return side if side * side == length and side else None


def resize_grid(table: torch.Tensor, source: tuple[int, int], target: tuple[int, int], extra: int = 0) -> torch.Tensor:
    """Resize a 2-D position table, bicubic, as mmpretrain does.

    Args:
        table (Tensor): (1, extra + h * w, C); the first ``extra`` rows (class token) are kept.
        source, target (tuple): Grids (h, w).
        extra (int): Rows without a place in the grid.

    Returns:
        Tensor: (1, extra + H * W, C), same type.
    """
    if source == target:
        return table
    # As a picture with C channels, in float32.
    image = rearrange(table[:, extra:], '1 (h w) c -> 1 c h w', h=source[0]).float()
    image = F.interpolate(image, size=target, mode='bicubic', align_corners=False)
    # Rows without a place are handed on as they are.
    return torch.cat([table[:, :extra], rearrange(image, '1 c h w -> 1 (h w) c').to(table.dtype)], dim=1)


def resize_volume(table: torch.Tensor, source: tuple[int, int, int], target: tuple[int, int, int]) -> torch.Tensor:
    """Resize a 3-D table (1, T * H * W, C): bicubic over space, then linear over time."""
    frames = rearrange(table, '1 (t n) c -> t n c', t=source[0])
    # Frame by frame in space first, then along time.
    frames = torch.cat([resize_grid(frame[None], source[1:], target[1:]) for frame in frames])
    if source[0] != target[0]:
        flat = rearrange(frames, 't n c -> 1 (n c) t').float()
        flat = F.interpolate(flat, size=target[0], mode='linear', align_corners=False).to(table.dtype)
        frames = rearrange(flat, '1 (n c) t -> t n c', n=frames.shape[1])
    return rearrange(frames, 't n c -> 1 (t n) c')


def resize_bias(table: torch.Tensor, source: tuple[int, ...], target: tuple[int, ...]) -> torch.Tensor:
    """Resize a relative-position bias table between window sizes.

    Args:
        table (Tensor): (entries, heads), one entry per distance: the product of 2 w - 1 over the window's sizes w.
        source, target (tuple): Windows (h, w) or (d, h, w).

    Returns:
        Tensor: Same layout for the target window; bicubic over space, linear over time, as in the Swin repository.
    """
    # A bias table is a map over distances, of which an image window has one in time.
    return resize_volume(table[None], _distances(source), _distances(target))[0]


def _distances(window: tuple[int, ...]) -> tuple[int, int, int]:
    depth, height, width = (1, *window) if len(window) == 2 else window
    return 2 * depth - 1, 2 * height - 1, 2 * width - 1


def bias_window(rows: int,
                tokens: int | None = None,
                like: tuple[int, ...] | None = None,
                dims: int = 2) -> tuple[int, ...]:
    """Find the window to which a bias table belongs.

    Args:
        rows (int): Rows of the table.
        tokens (int | None): Tokens per window, where the file also stores the index buffer.
        like (tuple | None): A window to prefer when several fit.
        dims (int): 2 for images, 3 for videos.

    Returns:
        tuple: (w, w) or (d, w, w).

    Raises:
        ValueError: No window with equal height and width fits, or several do and nothing decides.
    """
    found = []
    for depth in range(1, 65) if dims == 3 else (1,):
        side = square(rows // (2 * depth - 1)) if rows % (2 * depth - 1) == 0 else None
        # 2 w - 1 distances: always odd.
        if side and side % 2:
            width = (side + 1) // 2
            if tokens is None or tokens == depth * width * width:
                found.append((depth, width, width) if dims == 3 else (width, width))
    # A window one token wide would fit many numbers of rows, and none is published.
    found = [window for window in found if window[-1] > 1] or found
    if like is not None and len(found) > 1:
        near = [window
                for window in found if window == like] or [w for w in found if w[0] == like[0] or w[1:] == like[1:]]
        found = near[:1] or found
    if len(found) != 1:
        raise ValueError(f'a relative-position bias table of {rows} rows fits {len(found)} window sizes: {found[:4]}')
    return found[0]


def relative_index(window: tuple[int, ...]) -> torch.Tensor:
    """Row of the bias table for every pair of tokens of a window: int64 (N, N), N = product of the window."""
    axes = torch.meshgrid(*(torch.arange(side) for side in window), indexing='ij')
    coordinates = torch.stack(axes).flatten(1)
    difference = coordinates[:, :, None] - coordinates[:, None, :]
    index = torch.zeros_like(difference[0])
    for axis, side in enumerate(window):
        # Mixed radix over the axes: upstream's order of the table's rows.
        index = index * (2 * side - 1) + difference[axis] + side - 1
    return index


def sinusoid(length: int, dim: int) -> torch.Tensor:
    """Sine-cosine table of VideoMAE, fp32 (1, length, dim): even channels sine, odd channels cosine."""
    channel = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10000 ** ((channel - channel % 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()[None]
