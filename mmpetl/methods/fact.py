# SPDX-License-Identifier: Apache-2.0
"""FacT: the weight increments of all blocks as one decomposed tensor.

Jie and Deng, "FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer", https://arxiv.org/abs/2212.03145,
equations 4 to 7::

    y = W x + b + scale * V dropout(M U x),    U (rank, C) and V (C, rank) shared by the whole network

q, k, v and proj are one C x C slice of the tensor each, fc1 and fc2 are ffn_dim / C slices each (output chunks of fc1,
input chunks of fc2). The small matrix M of a slice is free in the tensor-train form, ``kind='tt'``; in the Tucker form,
``kind='tk'``, it is ``M_j = sum_c core[:, :, c] mix[c, j]`` for slice j.
"""

import math
from typing import Dict, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import AS_THEY_ARE, OPS, BlockSpec, HalfCopies, Layers, PerLayer, Update, add_product, check_ops, positive


@METHODS.register_module()
class FacT(Update):
    """Factor-tuning.

    Args:
        specs: Blocks of the backbone; the adapted ones have one width (the paper defines no decomposition over
            several).
        kind: 'tt' (tensor train) or 'tk' (Tucker).
        rank: Rank of the decomposition.
        scale: Factor of the update; per layer where wanted.
        ops: Adapted ops; all by default, as published.
        drop_rate: Dropout between M and V.
        ref_layout: ``kind='tk'`` only: order the slices of fc1 and fc2 as the published code does, which interleaves
            them (its weight files need it). The functions that can be expressed are the same.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``rank`` < 1, ``kind`` or an op is unknown, blocks differ in width, or C does not divide ffn_dim.
    """

    recomputes = True
    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 kind: str = 'tt',
                 rank: int = 16,
                 scale: PerLayer = 1.0,
                 ops: Union[str, Sequence[str]] = OPS,
                 drop_rate: float = 0.1,
                 ref_layout: bool = False,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if kind not in ('tt', 'tk'):
            raise ValueError(f"FacT: kind must be 'tt' or 'tk', got {kind!r}")
        if ref_layout and kind == 'tt':
            raise ValueError("FacT: ref_layout belongs to kind='tk'")
        self.kind, self.rank, self.ref_layout = kind, positive(rank, 'rank', 'FacT'), ref_layout
        chosen = check_ops(ops, 'FacT: ops', OPS)
        # In the order of the slices in the tensor, whatever order the user wrote.
        self.ops = tuple(op for op in OPS if op in chosen)
        self.scales = self.spread(scale, 'scale')
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        dim, self.chunks = self._shared_width()
        self.u = nn.Parameter(torch.empty(self.rank, dim))
        self.v = nn.Parameter(torch.empty(dim, self.rank))
        self.slots, num_slots = self._number_slices()
        if kind == 'tk':
            self.core = nn.Parameter(torch.empty(self.rank, self.rank, self.rank))
            self.mix = nn.Parameter(torch.empty(self.rank, num_slots))
        else:
            # fc1 has its slices in the outputs, fc2 in the inputs: U and V keep the width C and serve all ops.
            shapes = {'fc1': (self.chunks * rank, rank), 'fc2': (rank, self.chunks * rank)}
            self.blocks = self.for_blocks(
                lambda i: nn.ParameterDict({op: torch.empty(shapes.get(op, (rank, rank))) for op in self.ops}))
        self.reset_parameters()

    def _shared_width(self) -> Tuple[int, int]:
        """Width C of all adapted blocks and slices per feed-forward weight, ffn_dim / C."""
        owner, widths = 'FacT', {(self.specs[i].dim, self.specs[i].ffn_dim) for i in self.layers}
        if len(widths) > 1:
            raise ValueError(
                f'{owner}: adapted blocks have different widths {sorted({dim for dim, _ in widths})}; its tensor is '
                f'defined '
                'for one width (plain vision transformers): choose `layers` of one stage')
        dim, ffn_dim = widths.pop()
        if ffn_dim % dim and {'fc1', 'fc2'} & set(self.ops):
            raise ValueError(f'{owner}: ffn_dim {ffn_dim} is no multiple of the width {dim}; leave out fc1 and fc2')
        return dim, ffn_dim // dim

    def _number_slices(self) -> Tuple[Dict[Tuple[int, str], slice], int]:
        """Slices of every (block, op) in the tensor, blocks first, then q k v proj fc1 fc2; and how many there are."""
        # Slices are numbered once for the whole network: block by block, op by op, as columns of mix.
        slots, start = {}, 0
        for i in self.layers:
            for op in self.ops:
                stop = start + (self.chunks if op in ('fc1', 'fc2') else 1)
                slots[i, op], start = slice(start, stop), stop
        return slots, start

    def reset_parameters(self) -> None:
        """U and the free M like torch's Linear, core and mix Xavier-uniform, V zero: the start is exact."""
        nn.init.kaiming_uniform_(self.u, a=math.sqrt(5))
        nn.init.zeros_(self.v)
        if self.kind == 'tk':
            nn.init.xavier_uniform_(self.core)
            nn.init.xavier_uniform_(self.mix)
        else:
            for block in self.blocks.values():
                for matrix in block.values():
                    nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def matrix(self, i: int, op: str, half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """M of one op: (rank, rank), of fc1 (chunks * rank, rank), of fc2 (rank, chunks * rank)."""
        if self.kind == 'tt':
            return half(self.blocks[str(i)][op])
        slices = half(self.core) @ half(self.mix)[:, self.slots[i, op]]  # (rank in, rank out, slices)
        if op not in ('fc1', 'fc2'):
            return slices[..., 0].t()
        # (rank in, rank out, slices): flattened as it is, the slice is the fastest axis, so fc1 and fc2 are
        # interleaved, as published.
        if self.ref_layout:
            return slices.flatten(1).t() if op == 'fc1' else slices.flatten(1)
        return slices.permute(2, 1, 0).flatten(0, 1) if op == 'fc1' else slices.permute(1, 2, 0).flatten(1)

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout) -> y + scale * V dropout(M U x), (..., Cout)."""
        if op == 'fc2':
            # Every chunk of the wide input passes the same U.
            x = x.unflatten(-1, (self.chunks, -1))
        code = recomputed(F.linear, x, self.half(self.u), level=SMALL_PRODUCT)
        code = code.flatten(-2) if op == 'fc2' else code
        code = self.drop(recomputed(F.linear, code, self.matrix(i, op, self.half), level=SMALL_PRODUCT))
        if op == 'fc1':
            # Every chunk of the wide output comes from the same V.
            code, y = (t.unflatten(-1, (self.chunks, -1)) for t in (code, y))
        y = add_product(y, code, self.half(self.v), self.scales[i])
        return y.flatten(-2) if op == 'fc1' else y

    def delta(self, i: int, op: str) -> Tensor:
        """The update of the weight, scale * V M U per slice, of shape (Cout, Cin)."""
        matrix = self.matrix(i, op)
        if op == 'fc1':
            increment = (self.v @ matrix.unflatten(0, (self.chunks, -1)) @ self.u).flatten(0, 1)
        elif op == 'fc2':
            increment = (self.v @ matrix.unflatten(1,
                                                   (self.chunks, -1)).transpose(0, 1) @ self.u).transpose(0,
                                                                                                          1).flatten(1)
        else:
            increment = self.v @ matrix @ self.u
        return self.scales[i] * increment
