# SPDX-License-Identifier: Apache-2.0
"""APT: attention prompt tuning, learnable extra keys and values of every attention.

Bandara and Patel, "Attention Prompt Tuning: Parameter-efficient Adaptation of Pre-trained Models for Spatiotemporal
Modeling", https://arxiv.org/abs/2403.06978. The prompts live in the space of one head and are shared by all heads::

    K <- [K; s_k * dropout(P_k)],    V <- [V; s_v * dropout(P_v)],    s = max(g, 1) per token, g starts at 1

One dropout mask per block serves the whole batch. Queries, residual stream and feed-forward network never see the
prompts.
"""

import math
from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..registry import METHODS
from ..sites import BlockSpec, Layers, Method, PerLayer, autocast_dtype, nearest, positive, product_as

#: Reparametrisation -> the value of its parameter at which the factor is 1.
REPARAMS = {'max': 1., 'exp': 0.}


class KeyValuePrompt(nn.Module):
    """``key`` and ``value`` (T, head_dim) and, with a reparametrisation, ``scale`` (2, T): keys first, then values."""

    def __init__(self, num_tokens: int, head_dim: int, scaled: bool) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(num_tokens, head_dim))
        self.value = nn.Parameter(torch.empty(num_tokens, head_dim))
        # None and no tensor of ones: a factor that is not there is no key of the state dict, and costs no
        # product.
        self.scale = nn.Parameter(torch.empty(2, num_tokens)) if scaled else None


@METHODS.register_module()
class APT(Method):
    """Attention prompt tuning.

    Args:
        specs: Blocks of the backbone.
        num_tokens: Prompts T per block, for keys and values each; per layer where wanted.
        reparam: Factor of every token: 'max' (``max(g, 1)``, as published; a ``g`` below 1 gets no gradient, and at
            exactly 1 half of it, the tie rule of ``torch.maximum``), 'exp' (``exp(g)``, never dead), or None. True and
            False mean 'max' and None.
        drop_rate: Dropout on the elements of the prompts.
        layers: Adapted blocks; the published start and end blocks s, e are ``'s-e'``.

    Raises:
        ValueError: If ``num_tokens`` < 1, ``reparam`` is unknown, or a block lies outside the backbone.
    """

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 num_tokens: PerLayer = 5,
                 reparam: Union[None, bool, str] = 'max',
                 drop_rate: float = 0.,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        # The published command line has a switch, so configs written after it say True or False.
        if isinstance(reparam, bool):
            reparam = 'max' if reparam else None
        if reparam is not None and reparam not in REPARAMS:
            raise ValueError(f'APT: unknown reparam {reparam!r}' + nearest(reparam, [*REPARAMS, 'None']))
        self.reparam: Optional[str] = reparam
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        tokens = self.spread(num_tokens, 'num_tokens', positive)
        self.blocks = self.for_blocks(
            lambda i: KeyValuePrompt(tokens[i], self.specs[i].head_dim, reparam is not None))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-sqrt(6 / (3 h w + head_dim)) for patches of h x w pixels; factors of 1."""
        for i in self.layers:
            spec, block = self.specs[i], self.blocks[str(i)]
            # The bound of VPT with the width of one head: prompts live in a head's space, not in the stream's.
            # Of a video patch (t, h, w) one frame counts.
            bound = math.sqrt(6. / (3 * spec.patch[-2] * spec.patch[-1] + spec.head_dim))
            nn.init.uniform_(block.key, -bound, bound)
            nn.init.uniform_(block.value, -bound, bound)
            if self.reparam is not None:
                nn.init.constant_(block.scale, REPARAMS[self.reparam])

    def factors(self, i: int) -> Optional[Tensor]:
        """The factors of the keys and values of block ``i``, (2, T, 1); None without a reparametrisation."""
        scale = self.blocks[str(i)].scale
        if scale is None:
            return None
        # maximum and not clamp: at g = 1, where all factors start, clamp would pass the whole gradient and
        # maximum passes half of it. The published runs took the latter.
        return (torch.maximum(scale, torch.ones_like(scale)) if self.reparam == 'max' else scale.exp()).unsqueeze(-1)

    def on_kv(self, i: int) -> Tuple[Tensor, Tensor]:
        """Keys and values (1, T, head_dim) each, shared by the heads."""
        block, factors = self.blocks[str(i)], self.factors(i)
        # Dropped before they are scaled, as published; the two commute but for the draws that a seed gives.
        if factors is None:
            key, value = self.drop(self.half(block.key)), self.drop(self.half(block.value))
        else:
            # In the precision of the other keys and values, once and not where they are joined.
            half = autocast_dtype(block.key)
            key, value = (product_as(self.drop(t), f, half) for t, f in zip((block.key, block.value), factors))
        # A leading axis of one stands for all heads, and is expanded without a copy.
        return key.unsqueeze(0), value.unsqueeze(0)

    @torch.no_grad()
    def absorb_scales(self) -> None:
        """Multiply the factors into the prompts and drop their parameters: same outputs in eval mode, as
        ``reparam=None``."""
        for i in self.layers:
            block, factors = self.blocks[str(i)], self.factors(i)
            if factors is not None:
                block.key.mul_(factors[0])
                block.value.mul_(factors[1])
                # A parameter set to None leaves the state dict, so the file is that of reparam=None.
                block.scale = None
        self.reparam = None
