# SPDX-License-Identifier: Apache-2.0
"""Adding up what several adapters change: linear, TIES, DARE.

Yadav et al., "TIES-Merging", https://arxiv.org/abs/2306.01708, algorithm 1; Yu et al., "Language Models are Super
Mario" (DARE), https://arxiv.org/abs/2311.03099, equation 1. Both work on each weight matrix by itself.
"""

import math
from typing import Any, Dict, List, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..merging import merged_weights, what_stays

COMBINATIONS = ('linear', 'ties', 'dare')


def check_factors(weights: Mapping[str, Any]) -> None:
    """Refuse factors of adapters that are no finite numbers.

    Raises:
        ValueError: Naming the adapter and its factor; also if there is none.
    """
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights={weights!r:.80}: give a dict of factors by adapter, such as {{'a': 0.5, 'b': 0.5}}")
    if not weights:
        raise ValueError('nothing to combine: give at least one adapter and its factor')
    for key, factor in weights.items():
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not math.isfinite(factor):
            raise ValueError(f'weights[{key!r}]={factor!r:.80}: give a finite number')


@torch.no_grad()
def deltas_of(backbone: nn.Module, name: str, tuned: Mapping[str, Tensor], base: Mapping[str,
                                                                                         Tensor]) -> Dict[str, Tensor]:
    """What the active adapter changes: base parameter -> difference to the base.

    Args:
        backbone: Backbone with the adapter in place.
        name: Name of the adapter, for messages.
        tuned: Base parameters that it trains, with their values.
        base: Their values in the base.

    Raises:
        ValueError: If a method is not a change of weights.
    """
    # Prompts and the like change no weight, so there is nothing to add up.
    staying = what_stays(dict(backbone.petl.items()))
    if staying:
        raise ValueError(
            f'adapter {name!r}: {staying[0]} ({type(staying[1]).__name__}) is not a change of weights and cannot be '
            f'combined'
        )
    # In float32: weights of fewer bits would round a small change away.
    stored = backbone.petl.widen()
    parameters = {n: p for n, p in backbone.named_parameters() if not n.startswith('petl.')}
    # All of them, as merging writes in place; they are put back below whatever happens.
    old = {n: p.detach().clone() for n, p in parameters.items()}
    try:
        for target, value in merged_weights(backbone) if len(backbone.petl) else ():
            target.copy_(value)
        changed = {
            # A tuned parameter holds its changed value already: the difference is to the base's.
            n: p.detach() - base.get(n, old[n]) if n in tuned else p.detach() - old[n]
            for n, p in parameters.items()
        }
        # A merged update may be zero all over, as at an exact start; it need not be stored.
        return {n: change for n, change in changed.items() if n in tuned or change.any()}
    finally:
        for n, p in parameters.items():
            p.copy_(old[n])
        backbone.petl.narrow(stored)


def trim(change: Tensor, density: float) -> Tensor:
    """change (...) -> same shape: its ``density`` largest elements by magnitude, zeros elsewhere."""
    # Rounded down: never more than was asked for.
    keep = int(density * change.numel())
    if keep >= change.numel():
        return change
    mask = torch.zeros(change.numel(), dtype=torch.bool, device=change.device)
    # By rank and not by threshold: of equal elements exactly as many are kept as wanted.
    mask[change.abs().flatten().topk(keep).indices] = True
    return change * mask.view_as(change)


def ties(changes: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """changes (...) each -> (...): trim, elect the sign of the larger total, average the weighted changes that agree
    with it (disjoint mean)."""
    trimmed = torch.stack([trim(c, density) for c in changes])
    # Unweighted: factors say how much is added, not who is right. A sum of zero counts as positive.
    sign = torch.where(trimmed.sum(0) >= 0, 1., -1.)
    # Trimmed elements have sign 0 and never agree.
    agree = trimmed.sign() == sign
    factors = torch.tensor(weights, dtype=trimmed.dtype, device=trimmed.device).view(-1, *[1] * changes[0].dim())
    # Where nobody agrees the sum is 0 and so is the mean.
    return (trimmed * factors * agree).sum(0) / agree.sum(0).clamp(min=1)


def dare(changes: Sequence[Tensor], weights: Sequence[float], density: float, generator: torch.Generator) -> Tensor:
    """changes (...) each -> (...): keep each element with probability ``density``, rescale by its inverse, add up."""
    total = torch.zeros_like(changes[0])
    for change, weight in zip(changes, weights):
        # Drawn on the CPU: the same choice on every device.
        kept = torch.rand(change.shape, generator=generator).to(change.device) < density
        # Rescaled, so that the sum is the right one on average.
        total += weight * change * kept / density
    return total


def combine_deltas(changes: Sequence[Mapping[str, Tensor]], weights: Sequence[float], how: str, density: float = 0.5,
                   seed: int = 0) -> Dict[str, Tensor]:
    """Combine changes of the same base.

    Args:
        changes: Per adapter: parameter -> change; an absent one counts as zero.
        weights: One factor per adapter.
        how: 'linear' (sum of factor times change), 'ties' or 'dare'.
        density: Part of each change that is kept, in (0, 1].
        seed: Of the random choice of 'dare'.

    Raises:
        ValueError: If the density lies outside (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f'density={density} must be above 0 and at most 1')
    generator = torch.Generator().manual_seed(seed)
    # In the order of the adapters, so that 'dare' draws in the same order each time.
    names: List[str] = list(dict.fromkeys(n for change in changes for n in change))
    combined = {}
    for name in names:
        shape = next(change[name] for change in changes if name in change)
        # An adapter that does not touch a weight votes for no change.
        parts = [change.get(name, torch.zeros_like(shape)) for change in changes]
        if how == 'linear':
            combined[name] = sum((w * p for w, p in zip(weights, parts)), torch.zeros_like(shape))
        elif how == 'ties':
            combined[name] = ties(parts, weights, density)
        else:
            combined[name] = dare(parts, weights, density, generator)
    return combined
