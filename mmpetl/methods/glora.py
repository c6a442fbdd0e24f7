# SPDX-License-Identifier: Apache-2.0
"""GLoRA: scale, update and prompt of every weight, scale and shift of every bias, each of a form of its own.

Chavan et al., "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning", https://arxiv.org/abs/2306.07967::

    y = (W + W * A + B) x + b + W c + d * b + e        A, B (Cout, Cin), c (Cin), d, e (Cout)

``*`` is the product of elements, as in the released code. ``A`` and ``B`` are low-rank products U D, one number per
output, one number, or absent; ``c`` is a product too, a vector, or absent; ``d`` and ``e`` are vectors, numbers, or
absent. The paper trains a network that draws a form for every op and step, then searches among the forms; here a form
is given per block, and ``mmpetl search`` tries several. ``D`` is Kaiming-uniform as torch's linear layers, all else is
zero: the start is exact.
"""

import math
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import ELEMENTWISE, SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import OPS, BlockSpec, Layers, Method, PerLayer, add_product, check_ops, nearest, positive, scale_shift

#: Forms of each of the five parts.
FORMS = dict(a=('lora', 'vector', 'scalar', 'none'), b=('lora', 'vector', 'scalar', 'none'),
             c=('lora', 'vector', 'none'), d=('vector', 'scalar', 'none'), e=('vector', 'scalar', 'none'))


class Parts(nn.Module):
    """The parts of one op, as :data:`FORMS` says: ``<part>_up`` (rows, rank) and ``<part>_down`` (rank, columns), or
    ``<part>`` (rows) or (1)."""

    def __init__(self, in_dims: int, out_dims: int, rank: int, forms: Dict[str, str]) -> None:
        super().__init__()
        sizes = dict(a=(out_dims, in_dims), b=(out_dims, in_dims), c=(in_dims, 1), d=(out_dims, 1), e=(out_dims, 1))
        self.forms = forms
        for name, form in forms.items():
            rows, columns = sizes[name]
            if form == 'lora':
                setattr(self, f'{name}_up', nn.Parameter(torch.empty(rows, rank)))
                setattr(self, f'{name}_down', nn.Parameter(torch.empty(rank, columns)))
            elif form != 'none':
                setattr(self, name, nn.Parameter(torch.empty(rows if form == 'vector' else 1)))

    def reset_parameters(self) -> None:
        """The published start."""
        for name, parameter in self.named_parameters():
            if name.endswith('down'):
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
            else:
                nn.init.zeros_(parameter)

    def matrix(self, name: str, half: Any) -> Optional[Tensor]:
        """One part as a matrix that broadcasts to its full size: (rows, columns), (rows, 1) or (1, 1); None where it is
        absent."""
        form = self.forms[name]
        if form == 'lora':
            return half(getattr(self, f'{name}_up')) @ half(getattr(self, f'{name}_down'))
        return None if form == 'none' else half(getattr(self, name))[:, None]

    def shift(self, weight: Tensor, bias: Optional[Tensor], half: Any) -> Optional[Tensor]:
        """W c + d * b + e (Cout) of a weight (Cout, Cin) and its bias (Cout); None where all three are absent."""
        found = None
        c, d, e = (self.matrix(name, half) for name in 'cde')
        if c is not None:
            found = F.linear(c.flatten(), weight)
        if d is not None:
            # Without a bias d has nothing to scale; its gradient is zero then, not missing.
            scaled = d.flatten() * (weight.new_zeros(len(weight)) if bias is None else bias)
            found = scaled if found is None else found + scaled
        if e is not None:
            found = e.flatten().expand(len(weight)) if found is None else found + e.flatten()
        return found


def _update(weight: Tensor, up: Tensor, down: Tensor, more: Optional[Tensor]) -> Tensor:
    """W * (U D) + B, (Cout, Cin); B broadcasts, or is None."""
    update = weight * (up @ down)
    return update if more is None else update + more


@METHODS.register_module()
class GLoRA(Method):
    """Generalized LoRA.

    Args:
        specs: Blocks of the backbone.
        rank: Rank of all parts in low-rank form; per layer where wanted.
        a: Form of the scale of the weight: 'lora', 'vector', 'scalar' or 'none'. All forms per layer where wanted.
        b: Form of the update of the weight, as ``a``.
        c: Form of the prompt, 'lora', 'vector' or 'none'.
        d: Form of the scale of the bias, 'vector', 'scalar' or 'none'.
        e: Form of the shift of the bias, as ``d``.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``rank`` < 1, a form or an op is unknown, all parts of a block are absent, or a block lies
            outside the backbone.
    """

    tokenwise = True
    # W is the base's own weight, and its bias is taken out of the output to scale the rest.
    first_on_op = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 rank: PerLayer = 4,
                 a: PerLayer = 'lora',
                 b: PerLayer = 'lora',
                 c: PerLayer = 'lora',
                 d: PerLayer = 'vector',
                 e: PerLayer = 'vector',
                 ops: Union[str, Sequence[str]] = OPS,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.ops, ranks = check_ops(ops, 'GLoRA: ops'), self.spread(rank, 'rank', positive)
        given = {name: self.spread(form, name) for name, form in dict(a=a, b=b, c=c, d=d, e=e).items()}
        for i in self.layers:
            for name, forms in given.items():
                if forms[i] not in FORMS[name]:
                    raise ValueError(f'GLoRA: {name}={forms[i]!r} is no form of {name}: choose from '
                                     f'{", ".join(FORMS[name])}' + nearest(str(forms[i]), FORMS[name]))
            if all(forms[i] == 'none' for forms in given.values()):
                raise ValueError(f"GLoRA: all parts of block {i} are 'none': give one, or leave it out of layers")
        self.blocks = self.for_parts(self.ops, lambda i, op: Parts(
            *self.specs[i].op_dims(op), ranks[i], {name: self._form(i, op, name, given[name][i]) for name in given}))
        self.reset_parameters()

    def _form(self, i: int, op: str, name: str, form: str) -> str:
        # Nothing to scale.
        return 'none' if name == 'd' and op == 'k' and not self.specs[i].key_bias else form

    def linear_ops(self, index: int) -> Tuple[str, ...]:
        return self.ops

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for parts in block.values():
                parts.reset_parameters()

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout) -> y + (W * A + B) x + W c + d * b + e, (..., Cout)."""
        parts, (weight, bias) = self.blocks[str(i)][op], self.frozen(i, op, 'read')
        shift = parts.shift(weight, bias, self.half)
        if parts.forms['a'] == 'lora':
            up, down = self.half(parts.a_up), self.half(parts.a_down)
            # As large as the weight, so it is made again in the backward pass.
            update = recomputed(_update, weight.to(up.dtype), up, down, parts.matrix('b', self.half), level=ELEMENTWISE)
            return add_product(y, x.to(update.dtype), update, 1., shift)
        if parts.forms['a'] != 'none':
            # Of one number per output W * A x is known: it is a multiple of the output less its bias.
            a = parts.a.expand(len(weight))
            taken = a if bias is None else a * bias
            shift = (shift if shift is not None else 0.) - (taken if bias is not None else 0. * taken)
            y, shift = recomputed(scale_shift, y, 1. + a, shift), None
        return self._add_b(parts, x, y, shift)

    def _add_b(self, parts: Parts, x: Tensor, y: Tensor, shift: Optional[Tensor]) -> Tensor:
        """y + B x + shift, (..., Cout)."""
        if parts.forms['b'] == 'none':
            return y if shift is None else y + shift.to(y.dtype)
        if parts.forms['b'] == 'lora':
            code, up = recomputed(F.linear, x, self.half(parts.b_down), level=SMALL_PRODUCT), self.half(parts.b_up)
        else:
            up = self.half(parts.b).expand(y.shape[-1])[:, None]  # the same for all inputs, which are summed
            code = F.linear(x, up.new_ones(1, x.shape[-1]))
        return add_product(y, code, up, 1., shift)

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """weight (Cout, Cin), bias (Cout) -> same shapes; a missing bias counts as zero."""
        if i not in self.layers or op not in self.ops:
            return weight, bias
        parts = self.blocks[str(i)][op]
        a, b = (parts.matrix(name, lambda p: p.to(weight)) for name in 'ab')
        shift, merged = parts.shift(weight, bias, lambda p: p.to(weight)), weight
        if a is not None:
            merged = merged + weight * a
        if b is not None:
            merged = merged + b
        return merged, bias if shift is None else shift if bias is None else bias + shift
