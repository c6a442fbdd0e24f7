# SPDX-License-Identifier: Apache-2.0
"""What methods share that adapt an image transformer to clips: refusals, widths, the table of AIM and ZeroI2V."""

from typing import Dict, Sequence

import torch
from torch import Tensor, nn

from ..sites import BlockSpec, Layers, Method, PerLayer, positive


class OverFrames(Method):
    """Base of methods for backbones that read clips as images, ``frames=T``.

    Raises:
        ValueError: If the backbone reads no clips.
    """

    over_time = True

    def __init__(self, specs: Sequence[BlockSpec], layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if not self.specs[0].frames:
            raise ValueError(f'{type(self).__name__}: needs a backbone for images that reads clips: set frames of the '
                             'backbone')

    def quarters(self, mid_dims: PerLayer) -> Dict[int, int]:
        """Hidden width by block, a quarter of the block's where ``mid_dims`` says None.

        Raises:
            ValueError: If one is < 1.
        """
        given = self.spread(mid_dims, 'mid_dims')
        return {i: positive(self.specs[i].dim // 4 if mid is None else mid, 'mid_dims', type(self).__name__)
                for i, mid in given.items()}

    def check_frames(self, found: int) -> None:
        """Refuse clips of another length.

        Raises:
            ValueError: If ``found`` is not the number of frames for which the method was made.
        """
        if found != self.specs[0].frames:
            raise ValueError(f'{type(self).__name__}: made for clips of {self.specs[0].frames} frames, got {found}: '
                             'set frames of the backbone')


class FrameTable(OverFrames):
    """Base of AIM and ZeroI2V: a learned row per frame is added to its tokens before the first block; bottlenecks
    start with down-projections from N(0, 0.02^2), all else at zero."""

    #: Bottlenecks by block and part, with linear layers ``down`` and ``up``.
    blocks: nn.ModuleDict

    def __init__(self, specs: Sequence[BlockSpec], layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.table = nn.Parameter(torch.empty(self.specs[0].frames, self.specs[0].dim))

    def active(self, point: str, index: int) -> bool:
        return super().active(point, index) or point == 'entry' and index == 0

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)
        for block in self.blocks.values():
            for adapter in block.values():
                nn.init.trunc_normal_(adapter.down.weight, std=0.02)
                for zero in (adapter.down.bias, adapter.up.weight, adapter.up.bias):
                    nn.init.zeros_(zero)

    def on_entry(self, x: Tensor) -> Tensor:
        """x (B T, N, C) plus the row of its frame -> (B T, N, C).

        Raises:
            ValueError: If clips have another number of frames than the table.
        """
        self.check_frames(self.frames(0))
        return (x.unflatten(0, (-1, len(self.table))) + self.table[:, None].to(x.dtype)).flatten(0, 1)
