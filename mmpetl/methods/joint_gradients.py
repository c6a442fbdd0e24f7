# SPDX-License-Identifier: Apache-2.0
"""Parameters of all blocks whose gradients are computed together, when the backward pass has gone through all blocks.

The gradient of a block's weights is needed by no other block, unlike that of its input. Places where stacked parameters
act therefore only note what the weights' gradients are made of, and one product per kind of parameter makes those of
all blocks. Each place takes an empty tensor, ``token``, that hangs on the parameters in autograd's graph: so the
products come after the last of them.

Where a compiler or tracer follows, or types differ, the formulas are left to autograd.
"""

from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..sites import HalfCopies, own_gradient

Gradients = Tuple[Optional[Tensor], ...]


class Found(Dict[int, Tuple[Any, ...]]):
    """Place -> what its gradients are made of. Graphs hold this and not the parameters."""

    def __init__(self) -> None:
        super().__init__()
        #: Where a gradient is to come from.
        self.places: Set[int] = set()

    def take(self) -> List[Tuple[Any, ...]]:
        """All, in the order of the places, and forget them.

        Raises:
            RuntimeError: If the gradient of some places was not asked for.
        """
        found = [self[at] for at in sorted(self)]
        self.clear()
        if 0 < len(found) < len(self.places):
            raise RuntimeError('gradients that are formed together need the backward pass of all blocks')
        return found


class Joint:
    """Parameters of many places for one forward pass. Abstract.

    Args:
        parts: All parameters (...).
    """

    def __init__(self, *parts: Tensor) -> None:
        self.parts = parts
        self.token: Optional[Tensor] = None
        if own_gradient(*parts):
            self.found = Found()
            self.token = _Token.apply(self.found, self.gradients, *parts)

    def own(self, at: int, *tensors: Tensor) -> bool:
        """Whether place ``at``, where ``tensors`` (...) come in, leaves the gradients to :meth:`gradients`."""
        if self.token is None or not own_gradient(self.parts[0], *tensors):
            return False
        self.found.places.add(at)
        return True

    @staticmethod
    def gradients(found: List[Tuple[Any, ...]]) -> Gradients:
        """Of all parts, from what every place found, in order."""
        raise NotImplementedError


class _Token(torch.autograd.Function):
    """An empty tensor whose gradient stands for those of the parts."""

    @staticmethod
    def forward(ctx: Any, found: Found, gradients: Callable[[List[Tuple[Any, ...]]], Gradients],
                *parts: Tensor) -> Tensor:
        ctx.found, ctx.gradients, ctx.count = found, gradients, len(parts)
        ctx.set_materialize_grads(False)
        return parts[0].new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None) -> Gradients:
        found = ctx.found.take()
        return (None, None, *(ctx.gradients(found) if found else (None, ) * ctx.count))


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    """On the first axis, (G, ...)."""
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]


class _Bottlenecks(torch.autograd.Function):
    """See :meth:`Bottlenecks.__call__`."""

    @staticmethod
    def forward(ctx: Any, joint: 'Bottlenecks', at: int, drop_rate: float, token: Tensor, *inputs: Tensor) -> Tensor:
        w1, b1, w2, b2 = joint.at(at)
        x, keep = _stack(_each(inputs, len(w1))), 1 - drop_rate
        ctx.place = joint.found, at, keep
        mid = torch.baddbmm(b1[:, None], x, w1.transpose(1, 2))
        code = F.gelu(mid)
        if not drop_rate:
            ctx.save_for_backward(w1, w2, mid, code, *inputs)  # not x, which may hold one of them several times
            return torch.baddbmm(b2[:, None], code, w2.transpose(1, 2)).add_(x)
        drawn = mid.new_empty(mid.numel() + x.numel(), dtype=torch.bool).bernoulli_(keep)
        masks = [part.view_as(t) for part, t in zip(drawn.split([mid.numel(), x.numel()]), (mid, x))]
        code.mul_(masks[0])
        ctx.save_for_backward(w1, w2, mid, code, *inputs, *masks)
        out = torch.baddbmm(b2[:, None], code, w2.transpose(1, 2), alpha=1 / keep)
        return torch.addcmul(x, masks[1], out, value=1 / keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        (found, at, keep), (w1, w2, mid, code, *inputs) = ctx.place, ctx.saved_tensors
        of_out = grad
        if keep < 1:
            *inputs, mask, wide = inputs
            of_out = grad * wide
            # The two factors 1 / keep of the code's gradient.
            of_code = torch.baddbmm(mid, of_out, w2, beta=0, alpha=keep**-2).mul_(mask)
        else:
            of_code = torch.bmm(grad, w2)
        inner = torch.ops.aten.gelu_backward(of_code, mid)
        found[at] = _each(inputs, len(w1)), inner, of_out, code, keep
        own, needed = len(inputs) - 1, ctx.needs_input_grad[4:]
        if not any(needed):
            return (None, ) * (4 + len(inputs))
        last = torch.baddbmm(grad, inner, w1)
        return (*(None, ) * 4, *last[:own].unbind(), last[own] if len(last) == len(inputs) else last[own:].sum(0))


def _each(inputs: Sequence[Tensor], groups: int) -> List[Tensor]:
    """One input (R, C) for each of the groups; the last one serves all that are left."""
    return [*inputs, *[inputs[-1]] * (groups - len(inputs))]


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """(R, C) each -> (G, R, C)."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0][None]


class Bottlenecks(Joint):
    """Groups of bottlenecks of one width, those of all blocks; a place is a group.

    Args:
        groups: Modules with the linears ``fc1`` (C -> m) and ``fc2`` (m -> C); those of a group act at once.
        half: Hands out parameters as products read them.
    """

    def __init__(self, groups: Sequence[Sequence[Any]], half: HalfCopies) -> None:
        kinds = [(linear, name) for linear in ('fc1', 'fc2') for name in ('weight', 'bias')]
        same = [[getattr(getattr(layer, linear), name) for layer in group] for group in groups
                for linear, name in kinds]
        # A parameter alone is not copied.
        super().__init__(*(half.stack(*t) if len(t) > 1 else half(t[0])[None] for t in same))

    def at(self, at: int) -> Tuple[Tensor, ...]:
        """Weights and biases of one group: (G, m, C), (G, m), (G, C, m), (G, C)."""
        return self.parts[4 * at:4 * at + 4]

    def __call__(self, at: int, inputs: Sequence[Tensor], drop_rate: float = 0.) -> Tensor:
        """x + dropout(fc2(dropout(gelu(fc1(x))))) of the G bottlenecks of group ``at``, (G, R, C).

        Args:
            at: Group.
            inputs: x of each bottleneck, (R, C); the last one serves all that are left.
            drop_rate: Of both dropouts, 0 in evaluation mode.
        """
        if self.own(at, *inputs):
            return _Bottlenecks.apply(self, at, drop_rate, self.token, *inputs)
        w1, b1, w2, b2 = self.at(at)
        x = _stack(_each(inputs, len(w1)))
        code = F.dropout(F.gelu(torch.baddbmm(b1[:, None], x, w1.transpose(1, 2))), drop_rate)
        return x + F.dropout(torch.baddbmm(b2[:, None], code, w2.transpose(1, 2)), drop_rate)

    @staticmethod
    def gradients(found: List[Tuple[Any, ...]]) -> Gradients:
        inputs, *kinds, keeps = zip(*found)
        x, (inner, grad, code) = _stack([x for place in inputs for x in place]), (_cat(kind) for kind in kinds)
        of_w2, of_b2 = torch.bmm(grad.transpose(1, 2), code), grad.sum(1)
        if keeps[0] < 1:
            of_w2, of_b2 = of_w2.div_(keeps[0]**2), of_b2.div_(keeps[0])
        all_ = torch.bmm(inner.transpose(1, 2), x), inner.sum(1), of_w2, of_b2
        sizes = [len(place) for place in inputs]
        return tuple(part for group in zip(*(t.split(sizes) for t in all_)) for part in group)


class _Sum(torch.autograd.Function):
    """See :meth:`Factors.sum`."""

    @staticmethod
    def forward(ctx: Any, joint: 'Factors', at: int, token: Tensor, x: Tensor, y: Tensor) -> Tensor:
        scale, ctx.place = joint.parts[0][at], (joint.found, at)
        ctx.save_for_backward(scale, y)
        return torch.addcmul(x, scale, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        (found, at), (scale, y) = ctx.place, ctx.saved_tensors
        found[at] = grad, y
        need_x, need_y = ctx.needs_input_grad[3:]
        return None, None, None, grad if need_x else None, grad * scale if need_y else None


class Factors(Joint):
    """Learned factors (n, 1) of sums of one shape."""

    def sum(self, at: int, x: Tensor, y: Tensor) -> Tensor:
        """x + factor ``at`` times y, both (...)."""
        if self.own(at, x, y):
            return _Sum.apply(self, at, self.token, x, y)
        return x + self.parts[0][at] * y

    @staticmethod
    def gradients(found: List[Tuple[Any, ...]]) -> Gradients:
        grads, ys = (torch.stack(kind) for kind in zip(*found))
        return (torch.bmm(grads.flatten(1)[:, None], ys.flatten(1)[..., None])[:, 0], )


class _Enter(torch.autograd.Function):
    """See :meth:`Queries.enter`."""

    @staticmethod
    def forward(ctx: Any, joint: 'Queries', at: int, token: Tensor, before: Tensor) -> Tuple[Tensor, Tensor]:
        (queries, scale), ctx.place = joint.parts, (joint.found, at, joint.row)
        ctx.save_for_backward(before)
        return (torch.addcmul(queries[at], scale, before[:, None], value=1 / queries.shape[1]), before.view_as(before))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, passed: Tensor) -> Gradients:
        (found, at, row), (before, ) = ctx.place, ctx.saved_tensors
        found[at] = grad, before
        # Both gradients, the sum over the queries and the factor by one product.
        return None, None, None, torch.baddbmm(passed[:, None], row.expand(len(grad), -1, -1), grad)[:, 0]


class _First(torch.autograd.Function):
    """See :meth:`Queries.enter`, where nothing was before."""

    @staticmethod
    def forward(ctx: Any, joint: 'Queries', at: int, batch: int, token: Tensor) -> Tensor:
        ctx.place = joint.found, at
        return joint.parts[0][at].expand(batch, -1, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        found, at = ctx.place
        found[at] = grad, None
        return None, None, None, None


class Queries(Joint):
    """Query tokens (L, P, C) of all blocks and the one factor (1, ) of what the block before found."""

    def __init__(self, queries: Tensor, scale: Tensor) -> None:
        super().__init__(queries, scale)
        self.row = scale.detach().expand(1, queries.shape[1]) / queries.shape[1]

    def enter(self, at: int, batch: int, before: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
        """The tokens of block ``at``, plus factor / P times ``before`` (B, C), the sum of the block before.

        Returns:
            (B, P, C), and ``before`` for all who read it behind.
        """
        queries, scale = self.parts
        if before is None:
            tokens = _First.apply(self, at, batch, self.token) if self.own(at) else queries[at].expand(batch, -1, -1)
            return tokens, None
        if self.own(at, before):
            return _Enter.apply(self, at, self.token, before)
        return queries[at] + scale / queries.shape[1] * before[:, None], before

    @staticmethod
    def gradients(found: List[Tuple[Any, ...]]) -> Gradients:
        of_tokens = torch.stack([grad for grad, _ in found])
        before = torch.stack([b for _, b in found if b is not None])
        summed = of_tokens[-len(before):].sum(2).flatten()
        of_scale = torch.dot(summed, before.flatten()) / of_tokens.shape[2]
        return of_tokens.sum(1), of_scale.view(1)
