# SPDX-License-Identifier: Apache-2.0
"""Tokens into windows and back, for windows of any rank: one gather each way, by indices made once per shape.

Padding, cyclic shift and partition are one permutation of the tokens (with zeros where padding stands). Its gradient is
the inverse permutation, so nothing is ever summed, and the backward pass is one gather too.
"""

from functools import wraps
from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

Size = Tuple[int, ...]
#: Shapes that a cache holds before it begins anew; inputs of ever new sizes must not fill the memory.
SHAPES = 128


def made_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a function of hashable arguments makes: plain tensors outside of tracing and of inference mode."""
    kept: Dict[Any, Any] = {}

    @wraps(function)
    def call(*args: Any) -> Any:
        # A graph holds its constants itself, and must not hold tensors of another pass.
        if torch.compiler.is_compiling():
            return function(*args)
        made = kept.get(args)  # one look: another thread may clear the cache between two
        if made is None:
            with torch.inference_mode(False), torch.no_grad():
                made = function(*args)
            if any(type(t) is not Tensor for t in (made if isinstance(made, tuple) else (made, ))):
                return made
            if len(kept) >= SHAPES:
                kept.clear()
            kept[args] = made
        return made

    return call


@made_once
def window_indices(grid: Size, size: Size, shift: Size, device: torch.device,
                   roll_first: bool = False) -> Tuple[Tensor, Tensor]:
    """Where every token goes.

    Args:
        grid: Token grid, (H, W) or (T, H, W), of M tokens.
        size: Window, same rank.
        shift: Cyclic shift along each axis.
        device: Of the indices.
        roll_first: Whether the grid is rolled before it is padded (timm), and not after (OpenMMLab, the authors).

    Returns:
        ``into`` (K, ): the token at each place of all windows in order, M for padding; ``back`` (M, ): the place of
        each token.
    """
    total = torch.Size(grid).numel()
    # The permutation is found by moving the tokens' own numbers as upstream moves the tokens.
    tokens = torch.arange(total, device=device).view(grid)
    axes = tuple(range(len(grid)))
    if any(shift) and roll_first:
        tokens = torch.roll(tokens, tuple(-s for s in shift), axes)
    for axis, (length, window) in enumerate(zip(grid, size)):
        missing = -length % window
        if missing:
            tokens = torch.cat([tokens, tokens.new_full((*tokens.shape[:axis], missing, *tokens.shape[axis + 1:]),
                                                        total)], axis)
    if any(shift) and not roll_first:
        tokens = torch.roll(tokens, tuple(-s for s in shift), axes)
    for axis in reversed(range(len(grid))):
        tokens = tokens.unflatten(axis, (-1, size[axis]))
    rank = len(grid)
    # Window axes first, then the axes inside a window.
    into = tokens.permute(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)).reshape(-1)
    # Padding has the largest number and is sorted to the end.
    return into, into.argsort()[:total]


@made_once
def shift_mask(grid: Size, size: Size, shift: Size, device: torch.device) -> Tensor:
    """What hides tokens of a window from each other that the cyclic shift brought together.

    Args:
        grid: Padded token grid.
        size, shift, device: As above; an axis that is not rolled has shift 0.

    Returns:
        (windows, N, N), 0 and -100.
    """
    # Along each axis the shift makes three regions: before the last window, and the two parts of it.
    region = torch.zeros(grid, dtype=torch.long)
    for axis, (length, window, moved) in enumerate(zip(grid, size, shift)):
        along = torch.arange(length)
        number = (along >= length - window).long() + (along >= length - moved).long() if moved else along * 0
        region = region * 3 + number.view([-1 if a == axis else 1 for a in range(len(grid))])
    into, _ = window_indices(grid, size, (0, ) * len(grid), torch.device('cpu'))
    cells = region.flatten()[into].view(-1, torch.Size(size).numel())
    return ((cells[:, None] != cells[:, :, None]) * -100.).to(device)


def _rows(x: Tensor, index: Tensor, padded: bool) -> Tensor:
    """Rows of x (B, M, C) by index (K, ) -> (B, K, C); index M gives zeros."""
    return (F.pad(x, (0, 0, 0, 1)) if padded else x).index_select(1, index)


class _Move(torch.autograd.Function):
    """Rows by one index, gradients by the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, padded: bool, padded_back: bool) -> Tensor:
        # Indices only: neither input nor output is needed for the gradient.
        ctx.there, ctx.back, ctx.padded, ctx.padded_back = there, back, padded, padded_back
        return _rows(x, there, padded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tuple[Optional[Tensor], ...]:
        moved = _Move.apply(grads[0], ctx.back, ctx.there, ctx.padded_back, ctx.padded)
        return moved, None, None, None, None


def to_windows(x: Tensor, grid: Size, size: Size, shift: Size, roll_first: bool = False) -> Tensor:
    """Cut the tokens into windows.

    Args:
        x: (B, M, C), M tokens of ``grid``.
        grid, size, shift, roll_first: See :func:`window_indices`.

    Returns:
        (B * windows, N, C), N tokens of a window; zeros where the grid is padded.
    """
    into, back = window_indices(grid, size, shift, x.device, roll_first)
    padded = len(into) > len(back)
    return _Move.apply(x, into, back, padded, False).view(-1, torch.Size(size).numel(), x.shape[-1])


def from_windows(y: Tensor, grid: Size, size: Size, shift: Size, roll_first: bool = False) -> Tensor:
    """The inverse of :func:`to_windows`.

    Args:
        y: (B * windows, N, C).
        grid, size, shift, roll_first: See :func:`window_indices`.

    Returns:
        (B, M, C).
    """
    into, back = window_indices(grid, size, shift, y.device, roll_first)
    padded = len(into) > len(back)
    return _Move.apply(y.reshape(-1, len(into), y.shape[-1]), back, into, False, padded)
