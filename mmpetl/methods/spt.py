# SPDX-License-Identifier: Apache-2.0
"""SPT: a budget of weights that goes where the loss is most sensitive, as single weights or as low-rank modules.

He et al., "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning", https://arxiv.org/abs/2303.08566. The
sensitivity of a weight is the square of its gradient, summed over batches of the training data. Of the most sensitive
weights of the network a matrix W (Cout, Cin) holds n; a module for it has S parameters::

    n >= threshold S:   y = W x + b + U D dropout(x)                                            structured='lora'
                        y <- y + U gelu(D dropout(y) + b_down) + b_up,  y = W x + b             structured='adapter'
    else:               y = (W + M) x + b,    M: n single weights at the most sensitive places

As many weights count as sensitive as the budget has room for, with the modules that they bring about. M, U and b_up
start at zero, D is drawn Kaiming-uniform, b_down as torch does: the start is exact. All that is trained lies in one
vector of the size of the budget. Until something has been chosen, the first matrices have modules from half of it, and
the other half is spread evenly.
"""

import math
from functools import partial
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import OPS, BlockSpec, Layers, Update, add_product, check_ops, positive

Place = Tuple[int, str]
MODULE, INFINITY = -1, 0x7f800000  # in ``counts``; the bits of the float32 above all others


def _settle(method: Any, *_: Any) -> None:
    """A state has been loaded. No method of an object, so that copies settle themselves."""
    method.settle(method.counts.tolist())


@METHODS.register_module()
class SPT(Update):
    """Sensitivity-aware choice among the weights of q, k, v, proj, fc1, fc2, gate.

    Args:
        specs: Blocks of the backbone.
        budget: Trained parameters in all; what no choice fits into stays zero.
        structured: Module of a matrix with many sensitive weights: 'lora' or 'adapter'.
        rank: Rank, or width, of the modules.
        threshold: A matrix gets a module where its sensitive weights are at least this share of the module's
            parameters.
        drop_rate: Dropout on the input of the modules.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``budget`` or ``rank`` < 1, there are fewer weights than ``budget``, ``structured`` or an op is
            unknown, ``threshold`` lies outside (0, 1], or a block lies outside the backbone.
    """

    tokenwise = True
    chooses_from = 'loss'

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 budget: int = 400_000,
                 structured: str = 'lora',
                 rank: int = 8,
                 threshold: float = 0.1,
                 drop_rate: float = 0.,
                 ops: Union[str, Sequence[str]] = OPS,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if structured not in ('lora', 'adapter'):
            raise ValueError(f"SPT: structured must be 'lora' or 'adapter', got {structured!r}")
        if not 0 < threshold <= 1:
            raise ValueError(f'SPT: threshold must lie in (0, 1], got {threshold!r}')
        self.ops, self.structured, self.threshold = check_ops(ops, 'SPT: ops'), structured, threshold
        self.budget, self.rank = positive(budget, 'budget', 'SPT'), positive(rank, 'rank', 'SPT')
        #: (Cin, Cout) of every adapted matrix.
        self.dims: Dict[Place, Tuple[int, int]] = {
            (i, op): self.specs[i].op_dims(op) for i in self.layers for op in self.ops}
        weights = sum(math.prod(dims) for dims in self.dims.values())
        if budget > weights:
            raise ValueError(f'SPT: budget={budget}, but the adapted ops have {weights} weights')
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.values = nn.Parameter(torch.zeros(budget))
        self.register_buffer('counts', torch.zeros(len(self.dims), dtype=torch.int32))
        # As wide as scattering takes them; narrower ones would be cast in every pass.
        self.register_buffer('index', torch.zeros(budget, dtype=torch.int64))
        self.register_buffer('chosen', torch.zeros((), dtype=torch.bool))
        #: Where in ``values`` every matrix has its part, and whether it is a module.
        self.layout: Dict[Place, Tuple[bool, slice]] = {}
        #: Squares of gradients by matrix, and the gradients of the batch at hand; None: nothing is noted.
        self._sums: Optional[Dict[Place, Tensor]] = None
        self._batch: Dict[Place, Tensor] = {}
        self._seed: Optional[int] = None
        self.register_load_state_dict_post_hook(_settle)
        self._spread_evenly()
        self.reset_parameters()

    # -- what lies where ----------------------------------------------------------------------------------------------

    def module_size(self, place: Place) -> int:
        """Parameters S of the module of a matrix."""
        cin, cout = self.dims[place]
        return self.rank * (cin + cout) if self.structured == 'lora' else 2 * self.rank * cout + self.rank + cout

    def settle(self, counts: Sequence[int]) -> None:
        """Lay out ``values``.

        Args:
            counts: Single weights of every matrix, -1 for a module.
        """
        end, self.layout = 0, {}
        for place, n in zip(self.dims, counts):
            start, end = end, end + (self.module_size(place) if n == MODULE else n)
            self.layout[place] = n == MODULE, slice(start, end)

    def _spread_evenly(self) -> None:
        """The layout before anything is chosen."""
        counts: List[int] = []
        used = 0
        for place in self.dims:
            size = self.module_size(place)
            fits = used + size <= self.budget // 2
            counts.append(MODULE if fits else 0)
            used += size if fits else 0
        rest = {place: math.prod(self.dims[place]) for place, n in zip(self.dims, counts) if not n}
        left, total, index = self.budget - used, sum(rest.values()), []
        for number, (place, n) in enumerate(zip(self.dims, counts)):
            if not n:
                counts[number] = min(left * rest[place] // total, rest[place])
                index.append(torch.arange(counts[number]) * (rest[place] // max(counts[number], 1)))
        self._write(counts, index)

    def _write(self, counts: List[int], index: List[Tensor]) -> None:
        """Lay out ``values``, and note the places of single weights, (n) each, matrix by matrix."""
        self.settle(counts)
        self.counts.copy_(torch.tensor(counts, dtype=torch.int32))
        self.index.zero_()
        singles = [part for module, part in self.layout.values() if not module]
        for part, places in zip(singles, index):
            self.index[part] = places.to(self.index)

    def _module(self, values: Tensor, place: Place) -> Tuple[Tensor, ...]:
        """D, U and, of an adapter, b_down and b_up: views of ``values`` (budget, )."""
        (cin, cout), rank = self.dims[place], self.rank
        read = cin if self.structured == 'lora' else cout
        shapes = [(rank, read), (cout, rank)] + ([] if self.structured == 'lora' else [(rank, ), (cout, )])
        parts = values[self.layout[place][1]].split([math.prod(shape) for shape in shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, shapes))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Zeros, and the drawn parts of modules; what was chosen stays."""
        generator = None
        if self._seed is not None:  # all processes must draw alike, whatever data they have read
            generator = torch.Generator().manual_seed(self._seed)
        nn.init.zeros_(self.values)
        for place, (module, _) in self.layout.items():
            if module:
                down, _, *biases = self._module(self.values, place)
                for part in (down, *biases[:1]):
                    bound = down.shape[1]**-0.5  # Kaiming-uniform with a = sqrt 5, and torch's own for the bias
                    part.copy_(torch.empty(part.shape).uniform_(-bound, bound, generator=generator))

    # -- the forward pass ---------------------------------------------------------------------------------------------

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout) -> y with what the matrix has been given, (..., Cout)."""
        place = i, op
        if self._sums is not None:
            # Nothing is added, but the gradient of y is wanted, which tells that of the whole weight.
            y = y + (self.values[:1] * 0).to(y.dtype)
            if y.requires_grad:
                y.register_hook(partial(self._felt, place, x.detach()))
            return y
        module, part = self.layout[place]
        if not module:
            return y if part.start == part.stop else add_product(y, *self._sparse(place, x))
        down, up, *biases = self._module(self.half(self.values), place)
        if self.structured == 'lora':
            return add_product(y, recomputed(F.linear, self.drop(x), down, level=SMALL_PRODUCT), up)
        code = recomputed(F.linear, self.drop(y), down, biases[0], level=SMALL_PRODUCT)
        return add_product(y, recomputed(F.gelu, code), up, bias=biases[1])

    def _sparse(self, place: Place, x: Tensor) -> Tuple[Tensor, Tensor]:
        """x (..., Cin) and M (Cout, Cin) in one type."""
        matrix = recomputed(partial(self.matrix, place), self.half(self.values), level=SMALL_PRODUCT)
        return x.to(matrix.dtype), matrix

    def matrix(self, place: Place, values: Tensor) -> Tensor:
        """M of one matrix, from all values (budget, ) -> (Cout, Cin)."""
        (cin, cout), part = self.dims[place], self.layout[place][1]
        return values.new_zeros(cout * cin).scatter(0, self.index[part], values[part]).view(cout, cin)

    def delta(self, i: int, op: str) -> Tensor:
        """The update of the weight, M or U D, (Cout, Cin)."""
        if not self.layout[i, op][0]:
            return self.matrix((i, op), self.values)
        down, up, *_ = self._module(self.values, (i, op))
        return up @ down

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """weight (Cout, Cin), bias (Cout) -> the weight and its update, and the same bias; None for an adapter."""
        if self.structured == 'adapter' and self.layout.get((i, op), (False, ))[0]:
            return None
        return super().fold(i, op, weight, bias)

    # -- the choice ---------------------------------------------------------------------------------------------------

    def _felt(self, place: Place, x: Tensor, gradient: Tensor) -> None:
        """Add dL / dW = gradient^T x of x (..., Cin) and the gradient of y (..., Cout)."""
        found = gradient.flatten(0, -2).to(self.values.dtype).t() @ x.flatten(0, -2).to(self.values.dtype)
        self._batch[place] = self._batch[place] + found if place in self._batch else found

    def _end_batch(self) -> None:
        for place, gradient in self._batch.items():
            if self._sums is not None:
                self._sums[place].addcmul_(gradient, gradient)
        self._batch = {}

    def look(self, classes: int) -> None:
        self._seed = int(torch.randint(2**31, ()))
        self._sums = {place: self.values.new_zeros(cout, cin) for place, (cin, cout) in self.dims.items()}
        self._batch = {}

    def saw(self, labels: Tensor) -> None:
        """A batch has passed, labels (B); the gradients at hand are those of the one before."""
        self._end_batch()

    def noted(self) -> Tuple[Tensor, ...]:
        """The sensitivities of all adapted weights, (Cout, Cin) each."""
        self._end_batch()
        return tuple((self._sums or {}).values())

    def _allotted(self, sums: Dict[Place, Tensor], least: Tensor) -> Tuple[List[int], int]:
        """Single weights of every matrix, -1 for a module, where all of at least this sensitivity count as sensitive;
        and the parameters that they need."""
        sensitive = torch.stack([(total >= least).sum() for total in sums.values()]).tolist()
        sizes = [self.module_size(place) for place in sums]
        counts = [MODULE if n and n >= self.threshold * size else n for n, size in zip(sensitive, sizes)]
        return counts, sum(size if n == MODULE else n for n, size in zip(counts, sizes))

    @torch.no_grad()
    def choose(self) -> str:
        found, self._sums = {place: total.float() for place, total in (self._sums or {}).items()}, None
        if not any(total.any() for total in found.values()):
            raise ValueError('SPT: no gradient came to any weight: has a batch passed, and are there two classes?')
        # Numbers above zero are in the order of their bits, and what is needed never falls as the limit does: 31 looks.
        low, high = 0, INFINITY
        while high - low > 1:
            middle = (low + high) // 2
            needed = self._allotted(found, _number(middle, found))[1]
            low, high = (low, middle) if needed <= self.budget else (middle, high)
        least = _number(high, found)
        counts, needed = self._allotted(found, least)
        self._write(counts, [(total.flatten() >= least).nonzero().flatten()
                             for total, n in zip(found.values(), counts) if n != MODULE])
        self.reset_parameters()
        self.chosen.fill_(True)
        modules = counts.count(MODULE)
        return (f'SPT: {modules} modules and {sum(counts) + modules:,} single weights, {needed:,} parameters of '
                f'{self.budget:,}')


def _number(bits: int, like: Dict[Place, Tensor]) -> Tensor:
    """The float32 with these bits, a scalar."""
    device = next(iter(like.values())).device
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).to(device)
