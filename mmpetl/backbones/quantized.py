# SPDX-License-Identifier: Apache-2.0
"""A frozen weight in 8 or 4 bits: small numbers, and factors.

What is written into it is rounded, what is read from it is a float32 weight made for the moment. Rows, transposes and
copies in another precision share the numbers, so a product keeps as few bits per weight for its backward pass.

``'int8'``: ``W ~ factor * number`` with numbers from -127 to 127 and one factor per row, as int8 weight-only
quantisation has it.

``'nf4'``: NormalFloat with 4 bits (Dettmers et al., QLoRA, https://arxiv.org/abs/2305.14314, section 3 and appendix E):
``W ~ factor * level``, where the 16 levels are quantiles of a normal distribution and each group of up to 64 weights of
a row has the largest of them by magnitude as its factor.
"""

from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten
#: What stands for a form where a precision does; 4 bits are places in the table of levels.
INT8, NF4 = torch.int8, torch.uint4


def _levels() -> Tensor:
    """The 16 levels of NormalFloat, float32, from -1 to 1 with an exact 0."""
    # The outermost quantile is the mean of 1 - 1/30 and 1 - 1/32, as infinity has no place in a table.
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    upper, lower = (torch.special.ndtri(torch.linspace(outermost, 0.5, n, dtype=torch.float64, device='cpu'))[:-1]
                    for n in (9, 8))
    return (torch.cat([-lower, lower.new_zeros(1), upper.flip(0)]) / upper[0]).float()


LEVELS = _levels()
_BETWEEN = (LEVELS[1:] + LEVELS[:-1]) / 2
#: The two levels of each byte: one look-up for two weights.
_PAIRS = torch.cartesian_prod(LEVELS, LEVELS)


def group_of(columns: int) -> int:
    """How many neighbours of a row share a factor; a row of another length is filled up to a multiple with zeros."""
    return next((size for size in (64, 32, 16) if columns % size == 0), 16)


def _shortened(largest: Tensor) -> Tensor:
    """largest (...) in bfloat16, (...), rounded up: no weight of the group is above its factor."""
    bits = largest.contiguous().view(torch.int32)
    return torch.where(bits & 0xFFFF == 0, bits, (bits | 0xFFFF) + 1).view(torch.float32).to(torch.bfloat16)


def _rounded_nf4(weight: Tensor) -> Tuple[Tensor, Tensor]:
    """Pairs of places, uint8 (Cout, padded Cin / 2), and factors, bfloat16 (Cout, groups), of a weight (Cout, Cin).

    Rounding what was rounded changes no bit: the largest of a group is its factor, to which it is rounded.
    """
    size = group_of(weight.shape[1])
    full = nn.functional.pad(weight.detach().float(), (0, -weight.shape[1] % size))
    groups = full.unflatten(1, (-1, size))
    factor = _shortened(groups.abs().amax(-1))
    safe = torch.where(factor > 0, factor, torch.ones_like(factor)).float()
    places = torch.bucketize(groups / safe[..., None], _BETWEEN.to(weight.device)).to(torch.uint8).flatten(1)
    return places[:, ::2] << 4 | places[:, 1::2], factor


def _dense_nf4(numbers: Tensor, factor: Tensor, columns: int) -> Tensor:
    """What :func:`_rounded_nf4` gave as a float32 weight (Cout, Cin)."""
    levels = nn.functional.embedding(numbers.int(), _PAIRS.to(numbers.device)).flatten(1)
    return (levels.unflatten(1, (factor.shape[1], -1)) * factor[..., None]).flatten(1)[:, :columns].contiguous()


def rounded(weight: Tensor, form: torch.dtype = INT8) -> Tuple[Tensor, Tensor]:
    """Numbers and factors of a weight (Cout, Cin): int8 (Cout, Cin) and float32 (Cout, 1), or for 4 bits uint8
    (Cout, padded Cin / 2), two in each, and bfloat16 (Cout, groups).

    Rounding what was rounded changes no bit: factors of 8-bit weights have 16 bits, so their products are exact.
    """
    if form is NF4:
        return _rounded_nf4(weight)
    largest = weight.detach().float().abs().amax(1, keepdim=True) / 127
    # Rounded up to 16 bits of mantissa, so that no number exceeds 127.
    bits = largest.contiguous().view(torch.int32)
    factor = torch.where(bits & 0xFF == 0, bits, (bits | 0xFF) + 1).view(torch.float32)
    safe = torch.where(factor > 0, factor, torch.ones_like(factor))
    return (weight.detach().float() / safe).round().clamp(-127, 127).to(torch.int8), factor


class QuantizedWeight(Tensor):
    """A weight (Cout, Cin) of which 8 or 4 bits each are stored; every operation sees a floating-point tensor.

    Args:
        numbers: int8 (Cout, Cin), or uint8 for 4 bits, see :func:`rounded`.
        factor: Of each row or group.
        columns: Cin.
        dtype: What operations see.
        turned: Whether this is the transpose, (Cin, Cout).
    """

    numbers: Tensor
    factor: Tensor
    columns: int
    turned: bool

    @staticmethod
    def __new__(cls, numbers: Tensor, factor: Tensor, columns: int, dtype: torch.dtype = torch.float32,
                turned: bool = False) -> 'QuantizedWeight':
        shape = (columns, len(numbers)) if turned else (len(numbers), columns)
        made: Any = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=numbers.device)
        made.numbers, made.factor, made.columns, made.turned = numbers, factor, columns, turned
        return made

    @classmethod
    def of(cls, weight: Tensor, form: torch.dtype = INT8) -> 'QuantizedWeight':
        """A weight (Cout, Cin), rounded to a form."""
        return cls(*rounded(weight, form), weight.shape[1])

    @property
    def form(self) -> torch.dtype:
        """``INT8`` or ``NF4``."""
        return INT8 if self.numbers.dtype is torch.int8 else NF4

    def full(self) -> Tensor:
        """The weight (Cout, Cin) as a plain tensor."""
        whole = self.numbers * self.factor if self.form is INT8 else _dense_nf4(self.numbers, self.factor, self.columns)
        dense = whole.to(self.dtype)
        return dense.t() if self.turned else dense

    @property
    def nbytes_stored(self) -> int:
        """Bytes of numbers and factors."""
        return sum(t.numel() * t.element_size() for t in (self.numbers, self.factor))

    def write(self, weight: Tensor) -> None:
        """Round a weight (Cout, Cin) into this one."""
        numbers, factor = rounded(weight.t() if self.turned else weight, self.form)
        self.numbers.copy_(numbers)
        self.factor.copy_(factor)

    def sharing(self, change: Callable[[Tensor], Tensor], **options: Any) -> 'QuantizedWeight':
        """The same with ``change`` applied to numbers and factors (Cout, ...)."""
        return QuantizedWeight(change(self.numbers), change(self.factor), self.columns,
                               **{'dtype': self.dtype, 'turned': self.turned, **options})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f'QuantizedWeight(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})'

    def __tensor_flatten__(self) -> Any:
        return ['numbers', 'factor'], (self.columns, self.dtype, self.turned)

    @staticmethod
    def __tensor_unflatten__(inner: Dict[str, Tensor], context: Any, size: Any, stride: Any) -> 'QuantizedWeight':
        return QuantizedWeight(inner['numbers'], inner['factor'], *context)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Optional[Dict[str, Any]] = None) -> Any:
        kwargs = kwargs or {}
        short = _SHORT.get(func)
        if short is not None and isinstance(args[0], QuantizedWeight):
            found = short(*args, **kwargs)
            if found is not None:
                return found
        written = [a for a, s in zip(args, func._schema.arguments)
                   if isinstance(a, QuantizedWeight) and s.alias_info is not None and s.alias_info.is_write]
        plain: Dict[int, Tensor] = {}

        def dense(weight: QuantizedWeight) -> Tensor:
            return plain.setdefault(id(weight), weight.full())

        out = func(*tree_map_only(QuantizedWeight, dense, args), **tree_map_only(QuantizedWeight, dense, kwargs))
        for weight in written:
            weight.write(plain[id(weight)])
        # An operation that writes returns what it wrote into.
        return written[0] if written and isinstance(out, Tensor) else out


def _same(weight: QuantizedWeight, *_: Any, **__: Any) -> QuantizedWeight:
    return weight.sharing(lambda t: t)


def _turn(weight: QuantizedWeight, *_: Any) -> QuantizedWeight:
    return weight.sharing(lambda t: t, turned=not weight.turned)


def _transpose(weight: QuantizedWeight, a: int, b: int) -> Optional[QuantizedWeight]:
    return _turn(weight) if a % 2 != b % 2 else None


def _copy(weight: QuantizedWeight, dtype: Any = None, device: Any = None, **_: Any) -> Optional[QuantizedWeight]:
    wanted = dtype or weight.dtype
    if not wanted.is_floating_point:
        return None
    return weight.sharing(lambda t: t.to(device) if device is not None else t, dtype=wanted)


def _slice(weight: QuantizedWeight, dim: int = 0, start: Any = None, end: Any = None,
           step: int = 1) -> Optional[QuantizedWeight]:
    return None if dim or weight.turned else weight.sharing(lambda t: _aten.slice.Tensor(t, 0, start, end, step))


def _split(weight: QuantizedWeight, size: Any, dim: int = 0) -> Optional[Tuple[QuantizedWeight, ...]]:
    if dim or weight.turned:
        return None
    return tuple(QuantizedWeight(n, f, weight.columns, weight.dtype)
                 for n, f in zip(weight.numbers.split(size), weight.factor.split(size)))


#: Operations whose result shares the numbers; None where it cannot.
_SHORT: Dict[Any, Callable[..., Any]] = {
    _aten.detach.default: _same,
    _aten.alias.default: _same,
    _aten.clone.default: lambda w, **_: w.sharing(lambda t: t.clone()),
    _aten._to_copy.default: _copy,
    _aten.t.default: _turn,
    _aten.transpose.int: _transpose,
    _aten.slice.Tensor: _slice,
    _aten.split.Tensor: _split,
    _aten.split_with_sizes.default: _split,
    _aten.empty_like.default: lambda w, dtype=None, device=None, **_: torch.empty(
        w.shape, dtype=dtype or w.dtype, device=device or w.device),
}


def is_quantized(weight: Any) -> bool:
    """Whether a weight (...) is stored in 8 or 4 bits."""
    return isinstance(weight, QuantizedWeight)


def put(module: nn.Module, name: str, weight: Tensor, form: torch.dtype = INT8) -> nn.Parameter:
    """Make a frozen parameter of a module one in ``form``, or a plain one of float32 again; weight (Cout, Cin).

    Returns:
        The new parameter: a plain one cannot hold another kind of tensor.
    """
    value = weight.full() if isinstance(weight, QuantizedWeight) else QuantizedWeight.of(weight, form)
    made = nn.Parameter(value, requires_grad=False)
    module._parameters[name] = made
    return made
