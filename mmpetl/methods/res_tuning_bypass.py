# SPDX-License-Identifier: Apache-2.0
"""Res-Tuning-Bypass: Res-Adapters in a chain beside the frozen network, into which no gradient enters.

Jiang et al., "Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from Backbone",
https://arxiv.org/abs/2310.19859. With x_0 the embedded tokens and x_l the output of block l::

    b_0 = x_0
    b_l = g_l H_l(x_l) + (1 - g_l) V_l(b_{l-1}),    g_l = sigmoid(alpha_l),  alpha_l = 0 at the start
    feature = LN(b_L)                               LN: the frozen final norm

H_l are the horizontal, V_l the vertical modules, z + A(z) each with a Res-Adapter A. They treat every token alone, so
that only the tokens that the output reads go through them.
"""

from typing import Any, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..registry import METHODS
from ..sites import AS_THEY_ARE, BlockSpec, HalfCopies, Layers, Method, PerLayer, cast_together, positive
from .res_tuning import ResAdapter
from .vqt import one_width


class Step(nn.Module):
    """One horizontal and one vertical module with their gate ``alpha`` (1); (..., C), (..., C) -> (..., C)."""

    def __init__(self, dim: int, mid_dims: int) -> None:
        super().__init__()
        self.horizontal, self.vertical = ResAdapter(dim, mid_dims), ResAdapter(dim, mid_dims)
        self.alpha = nn.Parameter(torch.empty(1))

    def reset_parameters(self) -> None:
        """The published start."""
        self.horizontal.reset_parameters()
        self.vertical.reset_parameters()
        nn.init.zeros_(self.alpha)

    def forward(self, x: Tensor, before: Tensor, half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """The block's output x and the chain before it, (..., C) each -> (..., C)."""
        across, along = x + self.horizontal(x, half), before + self.vertical(before, half)
        return torch.lerp(along, across, torch.sigmoid(self.alpha).to(across.dtype))


@METHODS.register_module()
class ResTuningBypass(Method):
    """Res-Tuning-Bypass; the feature is C wide: the class token, or the mean of all tokens where the backbone has none.

    Args:
        specs: Blocks of the backbone.
        mid_dims: Width of the Res-Adapters; per layer where wanted.
        layers: Blocks whose output is read.

    Raises:
        ValueError: If ``mid_dims`` < 1, or the blocks differ in width.
    """

    def __init__(self, specs: Sequence[BlockSpec], mid_dims: PerLayer = 10, layers: Layers = None) -> None:
        super().__init__(specs, layers)
        dim, mids = one_width(specs, 'ResTuningBypass'), self.spread(mid_dims, 'mid_dims', positive)
        # What block l gives is what block l + 1 reads, so that only the last one's output is stored under its own name.
        self.side_reads = ('x', 'out') if len(specs) - 1 in self.layers else ('x', )
        self.steps = self.for_blocks(lambda i: Step(dim, mids[i]))
        self.reset_parameters()

    def active(self, point: str, index: int) -> bool:
        # Block 0 reads the embedded tokens; block l reads what block l - 1 gave.
        return point == 'side' and (index == 0 or index - 1 in self.layers)

    def reset_parameters(self) -> None:
        for step in self.steps.values():
            step.reset_parameters()

    def on_side(self, reads: Sequence[Mapping[str, Tensor]], blocks: Sequence[Any]) -> Tensor:
        """Block inputs ``x`` and the last block's ``out``, all (B, N, C) -> feature (B, C)."""
        token = bool(self.specs[0].extra_tokens)
        streams = [read.get('x') for read in reads] + [reads[-1].get('out')]
        # Cut before it is cast: of most backbones one token is read.
        streams = cast_together([s[:, 0] if token and s is not None else s for s in streams])
        chain = streams[0]
        for i in self.layers:
            chain = self.steps[str(i)](streams[i + 1], chain, self.half)
        if not token:
            chain = chain.mean(1)  # mean, then norm: the order of VideoMAE's own output
        norm = blocks[-1].final_norm
        return chain if norm is None else norm(chain)
