# SPDX-License-Identifier: Apache-2.0
"""AdaLoRA: low-rank updates in the form of singular values, whose ranks follow from what the loss feels.

Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
https://arxiv.org/abs/2303.10512::

    y = W x + b + s P (e * Q dropout(x))        s = alpha / rank, P (Cout, rank), e (rank), Q (rank, Cin)
    R(P, Q) = ||P^T P - I||_F^2 + ||Q Q^T - I||_F^2                   equation 4, added to the loss

``P`` and ``Q`` are drawn from N(0, 0.02^2), ``e`` is zero: the start is exact. :class:`Allocator` takes away the
singular values that matter least, over all ops and blocks together, on a falling budget::

    I = |w * gradient|,    I' <- beta1 I' + (1 - beta1) I,    U' <- beta2 U' + (1 - beta2) |I - I'|,    s(w) = I' U'
    S_i = s(e_i) + mean_j s(Q_ij) + mean_j s(P_ji)

The hook ``mmpetl.AdaLoRAHook`` tells it of each step.
"""

from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import BlockSpec, Layers, PerLayer, Update, add_product, check_ops, positive


class Triplets(nn.Module):
    """Singular values and vectors of one op: ``left`` (Cout, rank), ``values`` (rank), ``right`` (rank, Cin)."""

    def __init__(self, in_dims: int, out_dims: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(out_dims, rank))
        self.values = nn.Parameter(torch.empty(rank))
        self.right = nn.Parameter(torch.empty(rank, in_dims))

    @torch.no_grad()
    def keep(self, kept: Tensor) -> None:
        """Leave the triplets ``kept`` (rank, ), bool; gradients go."""
        # Through .data a parameter stays the same object under the same name.
        for p, value in ((self.left, self.left[:, kept]), (self.values, self.values[kept]),
                         (self.right, self.right[kept])):
            p.data, p.grad = value.clone(), None

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        """Take on the stored rank, so that a pruned state loads into an unpruned method and the reverse."""
        values = state_dict.get(f'{prefix}values')
        if isinstance(values, Tensor) and values.dim() == 1 and values.shape != self.values.shape:
            for p, shape in ((self.left, (len(self.left), len(values))), (self.values, values.shape),
                             (self.right, (len(values), self.right.shape[1]))):
                p.data, p.grad = p.new_zeros(shape), None
        super()._load_from_state_dict(state_dict, prefix, *args)


@METHODS.register_module()
class AdaLoRA(Update):
    """Adaptive low-rank adaptation of any of q, k, v, proj, fc1, fc2, gate.

    Args:
        specs: Blocks of the backbone.
        rank: Rank at the start; per layer where wanted. What is left in the end is the hook's ``target_rank`` on
            average.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        alpha: Numerator of the scale ``alpha / rank``, which pruning leaves as it is; None means scale 1. Per layer
            where wanted.
        drop_rate: Dropout on the input of the branch.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``rank`` < 1, an op is unknown, or a block lies outside the backbone.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 rank: PerLayer = 12,
                 ops: Union[str, Sequence[str]] = ('q', 'k', 'v', 'proj', 'fc1', 'fc2'),
                 alpha: PerLayer = None,
                 drop_rate: float = 0.,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.ops = check_ops(ops, 'AdaLoRA: ops')
        ranks, alphas = self.spread(rank, 'rank', positive), self.spread(alpha, 'alpha')
        self.scales = {i: 1. if alphas[i] is None else alphas[i] / ranks[i] for i in self.layers}
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.blocks = self.for_parts(self.ops, lambda i, op: Triplets(*self.specs[i].op_dims(op), ranks[i]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for triplets in self.triplets().values():
            nn.init.normal_(triplets.left, std=0.02)
            nn.init.zeros_(triplets.values)
            nn.init.normal_(triplets.right, std=0.02)

    def triplets(self) -> Dict[str, Triplets]:
        """What each op holds, by '<block>.<op>'."""
        return {f'{i}.{op}': found for i, block in self.blocks.items() for op, found in block.items()}

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout) -> y + s P (e * Q dropout(x)), (..., Cout)."""
        return self.on_part(self.part(i, op), x, y)

    def part(self, i: int, op: str) -> Any:
        return self.blocks[str(i)][op], self.scales[i]

    def on_part(self, part: Any, x: Tensor, y: Tensor) -> Tensor:
        """As :meth:`on_linear` with the triplets and scale of one place: x (..., Cin), y (..., Cout) -> (..., Cout)."""
        triplets, scale = part
        left, values, right = (self.half(p) for p in (triplets.left, triplets.values, triplets.right))
        # The values scale the small matrix: nothing of the tokens' size is kept for their gradient.
        code = recomputed(F.linear, self.drop(x), values[:, None] * right, level=SMALL_PRODUCT)
        return add_product(y, code, left, scale)

    def delta(self, i: int, op: str) -> Tensor:
        """The update of the weight, s P diag(e) Q, of shape (Cout, Cin)."""
        triplets, scale = self.part(i, op)
        return scale * (triplets.left * triplets.values) @ triplets.right

    def orthogonality(self, form: str = 'paper') -> Tensor:
        """How far all P (Cout, rank) and Q (rank, Cin) are from orthonormal: a scalar, to be added to the loss.

        Args:
            form: 'paper' sums the squared norms of equation 4 over all ops; 'released' is the mean of the norms
                themselves over all P and Q, as the published code and peft have it.
        """
        found = []
        for triplets in self.triplets().values():
            for gram in (triplets.left.t() @ triplets.left, triplets.right @ triplets.right.t()):
                off = gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
                found.append(off.square().sum() if form == 'paper' else torch.linalg.matrix_norm(off))
        total = torch.stack(found).sum()
        return total if form == 'paper' else total / len(found)

    def allocator(self, *args: Any, **options: Any) -> 'Allocator':
        """What chooses among the triplets while they are trained; see :class:`Allocator`."""
        return Allocator(self, *args, **options)


class Allocator:
    """Importance of all triplets over the steps of a training, and the budget that chooses among them.

    Args:
        method: What is trained.
        target_rank: Triplets that an op keeps in the end, on average; None: two thirds of those at the start.
        steps: Steps of the whole training.
        warm_up: First steps, in which nothing is taken away.
        final: Last steps, in which the choice is fixed.
        interval: Steps from one choice to the next.
        beta1, beta2: Decay of importance and uncertainty.

    Raises:
        ValueError: If the phases do not fit into the training, or a number is out of range.
    """

    def __init__(self, method: AdaLoRA, target_rank: Optional[int], steps: int, warm_up: int, final: int, interval: int,
                 beta1: float = 0.85, beta2: float = 0.85) -> None:
        if warm_up < 0 or final < 0 or warm_up + final >= steps:
            raise ValueError(f'AdaLoRA: warm_up={warm_up} and final={final} must leave some of the {steps} '
                             'steps between them')
        if not (0 < beta1 < 1 and 0 < beta2 < 1) or interval < 1:
            raise ValueError(f'AdaLoRA: beta1={beta1!r} and beta2={beta2!r} must lie between 0 and 1, '
                             f'interval={interval!r} at 1 or above')
        self.method, self.steps, self.warm_up, self.final, self.interval = method, steps, warm_up, final, interval
        self.betas = beta1, beta2
        ranks = [len(t.values) for t in method.triplets().values()]
        self.start = sum(ranks)
        self.target = (max(1, 2 * self.start // (3 * len(ranks))) if target_rank is None else target_rank) * len(ranks)
        if not 0 < self.target <= self.start:
            raise ValueError(f'AdaLoRA: target_rank={target_rank} must be a whole number from 1 to the rank at the '
                             'start')
        self.sensitivity: Dict[str, Tensor] = {}
        self.uncertainty: Dict[str, Tensor] = {}
        self.kept: Dict[str, Tensor] = {}

    def _parameters(self) -> Iterator[Tuple[str, Tensor]]:
        return ((f'{name}.{key}', p) for name, triplets in self.method.triplets().items()
                for key, p in triplets.named_parameters())

    def budget(self, step: int) -> int:
        """Triplets that remain after a step: all in the first phase, then falling with the third power of the time."""
        if step <= self.warm_up:
            return self.start
        left = max(0., 1 - (step - self.warm_up) / (self.steps - self.final - self.warm_up))
        return int((self.start - self.target) * left**3 + self.target)

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Look at the gradients of a step, and take away what the budget leaves no room for. To be called after the
        optimizer's step, before the gradients are cleared.

        Args:
            step: Number of the step.
        """
        last = self.steps - self.final
        if step < last:
            self._observe()
        if step == last or self.warm_up < step < last and step % self.interval == 0:
            self.choose(self.target if step == last else self.budget(step))
        elif step > last and self.kept:
            self._mask()

    def _observe(self) -> None:
        beta1, beta2 = self.betas
        for name, p in self._parameters():
            if p.grad is None:
                continue
            felt = (p * p.grad).abs()
            before, unsure = (kept.get(name, torch.zeros_like(p)) for kept in (self.sensitivity, self.uncertainty))
            self.sensitivity[name] = beta1 * before + (1 - beta1) * felt
            self.uncertainty[name] = beta2 * unsure + (1 - beta2) * (felt - self.sensitivity[name]).abs()

    def scores(self) -> Dict[str, Tensor]:
        """Importance of each triplet by '<block>.<op>', (rank) each."""
        felt = {name: self.sensitivity[name] * self.uncertainty[name] for name in self.sensitivity}
        return {name: felt[f'{name}.values'] + felt[f'{name}.right'].mean(1) + felt[f'{name}.left'].mean(0)
                for name in self.method.triplets()}

    def choose(self, budget: int) -> None:
        """Keep the ``budget`` most important triplets; the values of the others become zero, and may come back until
        the choice is fixed."""
        scores = self.scores()
        if budget < self.start:
            least = torch.cat(list(scores.values())).kthvalue(self.start - budget).values
            self.kept = {name: score > least for name, score in scores.items()}
        else:
            self.kept = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
        self._mask()

    def finish(self, prune: bool = True) -> Dict[str, int]:
        """Make the last choice if it has not been made, and remove for good what it left out; what the others do stays.
        Optimizers must be renewed.

        Args:
            prune: False removes nothing; what was left out is zero.

        Returns:
            The rank that is left, by '<block>.<op>'.
        """
        if sum(int(kept.sum()) for kept in self.kept.values()) != self.target and self.sensitivity:
            self.choose(self.target)
        triplets = self.method.triplets()
        for name, kept in self.kept.items() if prune else ():
            triplets[name].keep(kept)
        return {name: int(kept.sum()) for name, kept in self.kept.items()}

    def state(self) -> Dict[str, Dict[str, Tensor]]:
        """What a checkpoint must hold."""
        return dict(sensitivity=self.sensitivity, uncertainty=self.uncertainty, kept=self.kept)

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up what :meth:`state` gave."""
        device = next(self.method.parameters()).device
        for name in ('sensitivity', 'uncertainty', 'kept'):
            setattr(self, name, {key: value.to(device) for key, value in state[name].items()})

    def _mask(self) -> None:
        for name, triplets in self.method.triplets().items():
            triplets.values.data.masked_fill_(~self.kept[name], 0.)
