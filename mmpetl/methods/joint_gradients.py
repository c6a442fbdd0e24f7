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
        #: What all places fill together in a backward pass.
        self.room: Optional[Tensor] = None

    def take(self) -> List[Tuple[Any, ...]]:
        """All, in the order of the places, and forget them.

        Raises:
            RuntimeError: If the gradient of some places was not asked for.
        """
        found, self.room = [self[at] for at in sorted(self)], None
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
        ctx.place = joint.found, at, joint.places(at), keep, joint.joined
        mid = torch.baddbmm(b1[:, None], x, w1.transpose(1, 2))
        codes = joint.room(mid, drop_rate)
        code = codes[joint.places(at)]
        torch.ops.aten.gelu.out(mid, out=code[..., :mid.shape[-1]])
        # Not x, which may hold an input several times; of the codes all, whose later places are still to be filled.
        kept = w1, w2, mid, codes.data, *inputs
        if not drop_rate:
            ctx.save_for_backward(*kept)
            if joint.with_bias is None:
                return torch.baddbmm(b2[:, None], code, w2.transpose(1, 2)).add_(x)
            return torch.baddbmm(x, code, joint.with_bias[joint.places(at)].transpose(1, 2))
        drawn = mid.new_empty(mid.numel() + x.numel(), dtype=torch.bool).bernoulli_(keep)
        masks = [part.view_as(t) for part, t in zip(drawn.split([mid.numel(), x.numel()]), (mid, x))]
        ctx.save_for_backward(*kept, *masks)
        out = torch.baddbmm(b2[:, None], code.mul_(masks[0]), w2.transpose(1, 2), alpha=1 / keep)
        return torch.addcmul(x, masks[1], out, value=1 / keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        (found, at, places, keep, joined), (w1, w2, mid, codes, *inputs) = ctx.place, ctx.saved_tensors
        of_out = grad
        if keep < 1:
            *inputs, mask, wide = inputs
            of_out = grad * wide
            # The two factors 1 / keep of the code's gradient.
            of_code = torch.baddbmm(mid, of_out, w2, beta=0, alpha=keep**-2).mul_(mask)
        else:
            of_code = torch.bmm(grad, w2)
        if not found:
            found.room = mid.new_empty(len(codes), *mid.shape[1:])
        inner = torch.ops.aten.gelu_backward.grad_input(of_code, mid, grad_input=found.room[places])
        found[at] = _each(inputs, len(w1)), of_out, found.room, codes, keep, joined
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
    """Groups of bottlenecks of one width, n in all blocks; a place is a group, and all see as many rows R.

    What all places make of one kind stands in one tensor, which each fills where it comes: so nothing is joined when
    their gradients are formed. Where copies of the parameters stand side by side anyway, and nothing is dropped, a code
    ends in a one and the second weights in their bias, so that one product adds all three::

        x + W2 c + b2 = x + [W2, b2] [c; 1]

    Args:
        groups: Modules with the linears ``fc1`` (C -> m) and ``fc2`` (m -> C); those of a group act at once.
        half: Hands out parameters as products read them.
    """

    def __init__(self, groups: Sequence[Sequence[Any]], half: HalfCopies) -> None:
        layers = [layer for group in groups for layer in group]
        kinds = [(linear, name) for linear in ('fc1', 'fc2') for name in ('weight', 'bias')]
        self.joined = len(layers) > 1 and half.copies(layers[0].fc1.weight)
        # A parameter that is not copied is none of a stack: the backward pass would keep another of it.
        parts = [[getattr(getattr(layer, linear), name) for layer in part]
                 for part in ([layers] if self.joined else groups) for linear, name in kinds]
        super().__init__(*(half.stack(*part) if len(part) > 1 else half(part[0])[None] for part in parts))
        self.sizes = [len(group) for group in groups]
        self.groups = [self.parts[at:at + 4] for at in range(0, len(self.parts), 4)]
        if self.joined:  # split once: slices of their own would each have a gradient of full size
            self.groups = list(zip(*(part.split(self.sizes) for part in self.parts)))
        self.codes: Optional[Tensor] = None
        self.with_bias: Optional[Tensor] = None

    def places(self, at: int) -> slice:
        """Where the bottlenecks of group ``at`` stand among all."""
        first = sum(self.sizes[:at])
        return slice(first, first + self.sizes[at])

    def at(self, at: int) -> Tuple[Tensor, ...]:
        """Weights and biases of one group: (G, m, C), (G, m), (G, C, m), (G, C)."""
        return self.groups[at]

    def room(self, mid: Tensor, drop_rate: float) -> Tensor:
        """For the codes of all groups (n, R, m), with a one behind each that the product with the bias reads; made by
        the group that comes first, with mid (G, R, m)."""
        if self.codes is None:
            size = sum(self.sizes), mid.shape[1], mid.shape[2]
            if drop_rate or not self.joined:
                self.codes = mid.new_empty(size)
            else:
                self.codes = mid.new_ones(*size[:2], size[2] + 1)
                self.with_bias = torch.cat([self.parts[2], self.parts[3][..., None]], -1)
        return self.codes

    def __call__(self, at: int, inputs: Sequence[Tensor], drop_rate: float = 0.) -> Tensor:
        """x + dropout(fc2(dropout(gelu(fc1(x))))) of the G bottlenecks of group ``at``, (G, R, C).

        Args:
            at: Group.
            inputs: x of each bottleneck, (R, C); the last one serves all that are left.
            drop_rate: Of both dropouts, 0 in evaluation mode; the same for all groups.
        """
        if self.own(at, *inputs):
            return _Bottlenecks.apply(self, at, drop_rate, self.token, *inputs)
        w1, b1, w2, b2 = self.at(at)
        x = _stack(_each(inputs, len(w1)))
        code = F.dropout(F.gelu(torch.baddbmm(b1[:, None], x, w1.transpose(1, 2))), drop_rate)
        return x + F.dropout(torch.baddbmm(b2[:, None], code, w2.transpose(1, 2)), drop_rate)

    @staticmethod
    def gradients(found: List[Tuple[Any, ...]]) -> Gradients:
        inputs, grads, (inner, *_), (codes, *_), (keep, *_), (joined, *_) = zip(*found)
        x, grad = _stack([x for place in inputs for x in place]), _cat(grads)
        of_w2, of_b2 = torch.bmm(grad.transpose(1, 2), codes[..., :inner.shape[-1]]), grad.sum(1)
        if keep < 1:
            of_w2, of_b2 = of_w2.div_(keep**2), of_b2.div_(keep)
        all_ = torch.bmm(inner.transpose(1, 2), x), inner.sum(1), of_w2, of_b2
        if joined:
            return all_
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
        return torch.addcmul(queries[at], scale, before[:, None]), before.view_as(before)

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


class _Join(torch.autograd.Function):
    """See :meth:`Queries.join`."""

    @staticmethod
    def forward(ctx: Any, joint: 'Queries', at: int, p: Tensor, h: Tensor) -> Tensor:
        ctx.place = joint.left, at, joint.mean
        return p + h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        left, at, mean = ctx.place
        if at in left:
            # What comes by the mean and what comes by all other ways, added by the product that spreads the first.
            grad = torch.baddbmm(grad, mean.expand(len(grad), -1, -1).transpose(1, 2), left.pop(at)[:, None])
        need_p, need_h = ctx.needs_input_grad[2:]
        return None, None, grad if need_p else None, grad if need_h else None


class _Leave(torch.autograd.Function):
    """See :meth:`Queries.leave`."""

    @staticmethod
    def forward(ctx: Any, joint: 'Queries', at: int, r: Tensor, hh: Tensor) -> Tensor:
        ctx.place = joint.left, at
        return torch.baddbmm(hh, joint.mean.expand(len(r), -1, -1), r).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        left, at = ctx.place
        # Autograd comes to the sum behind r after all who read r.
        left[at] = grad
        return None, None, None, grad[:, None]


class Queries(Joint):
    """Query tokens (L, P, C) of all blocks and the one factor (1, ) of what the block before found."""

    def __init__(self, queries: Tensor, scale: Tensor) -> None:
        super().__init__(queries, scale)
        self.row = scale.detach().expand(1, queries.shape[1])
        #: The row (1, P) that makes a product a mean over the queries.
        self.mean = queries.detach().new_full((1, queries.shape[1]), 1 / queries.shape[1])
        #: Gradients of the means (B, C) by place, on their way through the backward pass.
        self.left: Dict[int, Tensor] = {}
        #: Places whose sum takes them.
        self.joined: Set[int] = set()

    def enter(self, at: int, batch: int, before: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
        """The tokens of block ``at``, plus factor times ``before`` (B, C), the mean of the block before.

        Returns:
            (B, P, C), and ``before`` for all who read it behind.
        """
        queries, scale = self.parts
        if before is None:
            tokens = _First.apply(self, at, batch, self.token) if self.own(at) else queries[at].expand(batch, -1, -1)
            return tokens, None
        if self.own(at, before):
            return _Enter.apply(self, at, self.token, before)
        return queries[at] + scale * before[:, None], before

    def join(self, at: int, p: Tensor, h: Tensor) -> Tensor:
        """r = p + h, all (B, P, C), of which :meth:`leave` is to take the mean."""
        if self.token is None or not own_gradient(self.mean, p, h):
            return p + h
        self.joined.add(at)
        return _Join.apply(self, at, p, h)

    def leave(self, at: int, r: Tensor, hh: Tensor) -> Tensor:
        """The mean over the queries of r (B, P, C), which :meth:`join` gave, plus hh (B, 1, C) -> (B, C)."""
        if at in self.joined and own_gradient(self.mean, r, hh):
            return _Leave.apply(self, at, r, hh)
        return r.mean(1) + hh.squeeze(1)

    @staticmethod
    def gradients(found: List[Tuple[Any, ...]]) -> Gradients:
        of_tokens = torch.stack([grad for grad, _ in found])
        before = torch.stack([b for _, b in found if b is not None])
        summed = of_tokens[-len(before):].sum(2)
        of_scale = torch.bmm(summed.view(1, 1, -1), before.view(1, -1, 1))
        return of_tokens.sum(1), of_scale.view(1)
