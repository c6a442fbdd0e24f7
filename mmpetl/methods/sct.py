# SPDX-License-Identifier: Apache-2.0
"""SCT: a linear layer over the few channels that are largest on the data of the task.

Zhao et al., "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels",
https://arxiv.org/abs/2309.08513::

    x_S <- x_S + s (W x_S + b)        x: the stream behind attention, S: its ``num_channels`` salient channels

A channel is salient by the norm of its values over all grid tokens of all pictures of a class, averaged over the
classes, in the frozen network. ``W`` (K, K) is drawn from N(0, 0.02^2), ``b`` is zero, as in the released code: the
start is near the frozen network, not exact. Until something has been chosen S are the first channels.
"""

from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import SUBS, BlockSpec, Layers, Method, PerLayer, check_ops, positive, sum_as


class Channels(nn.Module):
    """A linear layer, ``weight`` (K, K) and ``bias`` (K), over the channels ``index`` (K)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(count, count)), nn.Parameter(torch.empty(count))
        self.register_buffer('index', torch.arange(count, dtype=torch.int64))


@METHODS.register_module()
class SCT(Method):
    """Salient channel tuning.

    Args:
        specs: Blocks of the backbone.
        num_channels: Channels K; per layer where wanted.
        scale: Factor s of the layer's output; per layer where wanted.
        subs: Sublayers behind which the stream is changed: 'attn' as published, 'ffn'.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``num_channels`` < 1 or more than there are, a sublayer is unknown, or a block lies outside the
            backbone.
    """

    inside_drop_path = False
    tokenwise = True
    chooses_from = 'features'

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 num_channels: PerLayer = 96,
                 scale: PerLayer = 1.0,
                 subs: Union[str, Sequence[str]] = 'attn',
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.subs = check_ops(subs, 'SCT: subs', SUBS)
        counts = self.spread(num_channels, 'num_channels', positive)
        self.scales = {i: float(s) for i, s in self.spread(scale, 'scale').items()}
        for i in self.layers:
            if counts[i] > self.specs[i].dim:
                raise ValueError(f'SCT: num_channels={counts[i]}, but the stream has {self.specs[i].dim} channels in '
                                 f'block {i}')
        self.blocks = self.for_parts(self.subs, lambda i, sub: Channels(counts[i]))
        self.register_buffer('chosen', torch.zeros((), dtype=torch.bool))
        #: Squares of each class and channel, (classes, C), by block and sublayer; None: nothing is noted.
        self._sums: Optional[Dict[Tuple[int, str], Tensor]] = None
        self._passed: List[Tuple[Tuple[int, str], Tensor]] = []
        self.reset_parameters()

    def branch_subs(self, index: int) -> Tuple[str, ...]:
        return self.subs

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for channels in block.values():
                nn.init.trunc_normal_(channels.weight, std=0.02)
                nn.init.zeros_(channels.bias)

    def on_branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """residual, y (..., C) -> y, changed in its salient channels, (..., C)."""
        if self._sums is not None:
            tokens = (residual + y).detach().flatten(1, -2)[:, self.specs[i].extra_tokens:]
            self._passed.append(((i, sub), tokens.double().square().sum(1)))
            return y
        channels, scale = self.blocks[str(i)][sub], self.scales[i]
        index, weight, bias = channels.index, self.half(channels.weight), self.half(channels.bias)
        salient = sum_as(residual.index_select(-1, index), y.index_select(-1, index), weight.dtype)
        if scale != 1:
            weight, bias = scale * weight, scale * bias  # small, unlike the product
        code = recomputed(F.linear, salient, weight, bias, level=SMALL_PRODUCT)
        return y.index_add(-1, index, code.to(y.dtype))

    # -- the choice ---------------------------------------------------------------------------------------------------

    def look(self, classes: int) -> None:
        # The last block must see all tokens too, not only those that are read.
        self.tokenwise, device = False, self.chosen.device
        self._sums = {(i, sub): torch.zeros(classes, self.specs[i].dim, dtype=torch.float64, device=device)
                      for i in self.layers for sub in self.subs}
        self._passed = []

    def saw(self, labels: Tensor) -> None:
        """labels (B) of the batch that has passed; frames of a clip, or crops of a picture, share its label."""
        assert self._sums is not None
        for place, squares in self._passed:
            each = squares.unflatten(0, (len(labels), -1)).sum(1)
            self._sums[place].index_add_(0, labels.to(each.device), each)
        self._passed = []

    def noted(self) -> Tuple[Tensor, ...]:
        """Squares of all classes and channels, (classes, C) each."""
        return tuple((self._sums or {}).values())

    @torch.no_grad()
    def choose(self) -> str:
        sums, self._sums = self._sums or {}, None
        self.__dict__.pop('tokenwise', None)  # what the class says holds again
        for (i, sub), squares in sums.items():
            seen = squares.any(1)
            if not seen.any():
                raise ValueError('SCT: no sample has passed, so nothing can be chosen')
            index = self.blocks[str(i)][sub].index
            index.copy_(squares[seen].sqrt().mean(0).topk(len(index)).indices.sort().values)
        self.chosen.fill_(True)
        return f'SCT: {sum(len(c.index) for b in self.blocks.values() for c in b.values()):,} salient channels'
