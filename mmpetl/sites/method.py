# SPDX-License-Identifier: Apache-2.0
"""The base class of all methods."""

import inspect
from typing import Any, Callable, Dict, FrozenSet, Mapping, Optional, Sequence, Tuple, Union

from mmengine.model import BaseModule
from torch import Tensor, nn

from .half import HalfCopies
from .options import Layers, PerLayer, check_arguments, parse_layers, per_layer
from .spec import NORMS, OPS, POINTS, SUBS, BlockSpec


class Method(BaseModule):
    """Base class of all methods: abstract; every method is final and owns all its parameters.

    A subclass builds its parameters in ``__init__`` from the specs, and sets them to their published initial values in
    :meth:`reset_parameters`, which must be safe to call again (MMEngine's ``init_weights`` calls it after the base's
    initialisers).

    Args:
        specs: All blocks of the backbone, in order.
        layers: Blocks to adapt, see :func:`parse_layers`.
    """

    #: Points that the method cannot do without, found from the overridden ``on_*`` methods.
    POINT_METHODS = {point: f'on_{point}' for point in POINTS}
    #: Whether ``on_branch`` acts before the block's drop-path (the branch is dropped with the sublayer) or after it.
    inside_drop_path = True
    #: What ``on_side`` reads of every block: any of 'x' (block input), 'u' (norm1(x)), 'k', 'v', 'out' (last block's
    #: output).
    side_reads: Tuple[str, ...] = ()
    #: Whether the final pooling averages prompts with the grid tokens ('only': prompts alone); None leaves it to the
    #: backbone's published form.
    pool_prompts: Union[None, bool, str] = None
    #: Whether other prompt methods may add their tokens to this method's.
    stack = False
    #: Rate of dropout on prompts with a mask of its own for every sample; the tap applies it, which knows the batch.
    sample_drop_rate = 0.
    #: Whether elementwise results (norms, activations, the method's own) are computed again in the backward pass by
    #: default, because the method would otherwise keep more than full fine-tuning does.
    recomputes = False
    #: Whether ``on_branch``, ``on_norm``, and ``on_input`` and ``on_linear`` of all ops but k and v treat every token
    #: alone. Then a last block whose output is read at the class token only hands them that token only.
    tokenwise = False
    #: Whether ``on_linear`` is defined on the op's own output W x + b only, so that no method may act before it.
    first_on_op = False

    #: What a factor (``scale``, ``alpha``) may be instead of a number.
    factor_words: Tuple[str, ...] = ()
    #: Arguments that change what a step costs and nothing of what it computes: an adapter belongs where they differ.
    costs_only: Tuple[str, ...] = ()

    #: The arguments with which the method was built, defaults included; adapter files carry them.
    arguments: Mapping[str, Any] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> 'Method':
        method = super().__new__(cls)
        if args or kwargs:  # copying and unpickling give none
            try:
                bound = inspect.signature(cls.__init__).bind(method, *args, **kwargs)
            except TypeError:
                return method  # __init__ is about to raise it
            check_arguments(cls.__init__, cls.__name__, {k: v for k, v in bound.arguments.items()
                                                         if k not in ('self', 'specs')}, cls.factor_words)
            bound.apply_defaults()
            method.__dict__['arguments'] = {k: v for k, v in bound.arguments.items() if k not in ('self', 'specs')}
        return method

    def __init__(self, specs: Sequence[BlockSpec], layers: Layers = None) -> None:
        super().__init__()
        if not specs:
            raise ValueError(f'{type(self).__name__}: the backbone has no blocks')
        self.half = HalfCopies()
        self.specs: Tuple[BlockSpec, ...] = tuple(specs)
        self.layers: Tuple[int, ...] = parse_layers(layers, len(self.specs), f'{type(self).__name__}: layers')
        #: The blocks of the backbone once the method is attached. A tuple, so that they are no children of the method.
        self.base_blocks: Tuple[Any, ...] = ()

    # -- for building -------------------------------------------------------------------------------------------------

    def spread(self, value: PerLayer, name: str, check: Optional[Callable[..., Any]] = None) -> Dict[int, Any]:
        """``{block: value}`` of one option for all adapted blocks, see :func:`per_layer`.

        Args:
            value: What the user gave.
            name: Name of the option for error messages.
            check: Called with each value, ``name`` and the method's name, for example :func:`positive`.
        """
        owner = type(self).__name__
        values = per_layer(value, self.layers, len(self.specs), f'{owner}: {name}')
        return {i: check(v, name, owner) for i, v in values.items()} if check else values

    def for_blocks(self, build: Callable[[int], nn.Module]) -> nn.ModuleDict:
        """``build(i)`` for every adapted block i, under the key ``str(i)``."""
        return nn.ModuleDict({str(i): build(i) for i in self.layers})

    def for_parts(self, parts: Sequence[str], build: Callable[[int, str], nn.Module]) -> nn.ModuleDict:
        """``build(i, part)`` for every adapted block i and every op or sublayer in ``parts``: ``[str(i)][part]``."""
        return self.for_blocks(lambda i: nn.ModuleDict({part: build(i, part) for part in parts}))

    # -- what the method may ask of the backbone ----------------------------------------------------------------------

    def bind(self, blocks: Sequence[Any]) -> None:
        """Called by the backbone: from now on :meth:`frozen` and :meth:`grid` answer from its blocks."""
        self.base_blocks = tuple(blocks)

    def frozen(self, i: int, op: str) -> Tuple[Tensor, Optional[Tensor]]:
        """The base's weight (Cout, Cin) and bias (Cout) of one op of block ``i``, to be read only.

        Raises:
            ValueError: If the method is not attached.
        """
        if not self.base_blocks:
            raise ValueError(f'{type(self).__name__} is not attached to a backbone, so it has no frozen weights')
        weight, bias = self.base_blocks[i].op_parameters(op)
        return weight.detach(), None if bias is None else bias.detach()

    def grid(self, i: int) -> Tuple[int, ...]:
        """The token grid of the input at hand in block ``i``: (H, W) or (T, H, W). Valid within a forward pass; of a
        method that is not attached, the grid of its specs."""
        return self.base_blocks[i].tap.grid if self.base_blocks else self.specs[i].grid

    def frames(self, i: int) -> int:
        """Frames T of the clips at hand in block ``i`` of a backbone for images, whose batch holds B T frames, clip by
        clip; 0: no clips. Of a method that is not attached, that of its specs."""
        return self.base_blocks[i].tap.frames if self.base_blocks else self.specs[i].frames

    def frozen_attention(self, i: int, x: Tensor, change: Optional[Callable[[Tensor], Tensor]] = None) -> Tensor:
        """The base's own norm and attention of block ``i``, untouched by any method: x (B, N, C) -> (B, N, C).

        Args:
            i: Block.
            x: What the norm reads.
            change: Between the two, (B, N, C) -> (B, N, C).

        Raises:
            ValueError: If the method is not attached.
        """
        if not self.base_blocks:
            raise ValueError(f'{type(self).__name__} is not attached to a backbone, so it has no frozen attention')
        return self.base_blocks[i].frozen_attention(x, change)

    # -- what the method touches --------------------------------------------------------------------------------------

    @classmethod
    def points(cls) -> FrozenSet[str]:
        """The points that this class overrides."""
        return frozenset(p for p, name in cls.POINT_METHODS.items() if getattr(cls, name) is not getattr(Method, name))

    def active(self, point: str, index: int) -> bool:
        """Whether the method acts at ``point`` of block ``index``; override to narrow it."""
        return point in self.points() and index in self.layers

    def linear_ops(self, index: int) -> Tuple[str, ...]:
        """Ops on which ``on_linear`` acts in block ``index``; taps leave the others alone."""
        return OPS

    def input_ops(self, index: int) -> Tuple[str, ...]:
        """Ops on which ``on_input`` acts in block ``index``."""
        return OPS

    def norm_ops(self, index: int) -> Tuple[str, ...]:
        """Norms on which ``on_norm`` acts; 'embed' belongs to block 0 and 'final' to block L-1."""
        return NORMS

    def branch_subs(self, index: int) -> Tuple[str, ...]:
        """Sublayers on which ``on_branch`` acts in block ``index``."""
        return SUBS

    @property
    def out_dims(self) -> Optional[int]:
        """Width of the feature that ``on_side`` returns; None where it is the backbone's own."""
        return None

    def num_prompts(self, index: int) -> int:
        """Number of tokens that ``on_prompts`` puts in before block ``index`` (0: none)."""
        return 0

    # -- the points ---------------------------------------------------------------------------------------------------

    def on_qkv(self, i: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """x: normed input of the block; all (B, N, C) -> q, k, v."""
        return q, k, v

    def on_input(self, i: int, op: str, x: Tensor) -> Tensor:
        """x (..., Cin), the op's input -> (..., Cin), which the base's product and ``on_linear`` of all methods read.
        """
        return x

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout), the op's input and output -> (..., Cout)."""
        return y

    def part(self, i: int, op: str) -> Any:
        """What :meth:`on_part` reads of this method in block ``i`` at ``op``, or None.

        Compiled code that is handed a module in place of a block's number and an op's name serves all blocks and ops.
        """
        return None

    def on_part(self, part: Any, x: Tensor, y: Tensor) -> Tensor:
        """What ``on_linear`` (x (..., Cin), y (..., Cout)) and ``on_norm`` (x and y are one (..., C)) do where
        :meth:`part` gives something -> like y."""
        raise NotImplementedError

    def on_norm(self, i: int, op: str, y: Tensor) -> Tensor:
        """y (..., C), the output of a norm or of the patch embedding -> (..., C)."""
        return y

    def on_branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """residual: stream before the sublayer; x: its normed input; y: the sublayer's output; all (..., C) -> y (...,
        C)."""
        return y

    def on_kv(self, i: int) -> Optional[Tuple[Tensor, Tensor]]:
        """None or extra keys and values, both (heads, P, head_dim), or (1, P, head_dim) shared by the heads.

        A leading batch axis, (B, heads or 1, P, head_dim), gives every sample its own (global attention only).
        """
        return None

    def on_prompts(self, i: int) -> Optional[Tensor]:
        """None or (1, P, C): tokens entering before block i; they replace those of the block before."""
        return None

    def on_stream(self, i: int, x: Tensor) -> Tensor:
        """x (B, N, C) or (B, T, H, W, C), the stream as it enters block i, before the block's prompts -> same shape.

        Grid tokens come last; see :meth:`grid`.
        """
        return x

    def on_entry(self, x: Tensor) -> Tensor:
        """x (B, N, C), the tokens of block 0 with class token and positions, before the first norm -> (B, N, C)."""
        return x

    def on_side(self, reads: Sequence[Mapping[str, Tensor]], blocks: Sequence[Any]) -> Tensor:
        """Per-block frozen activations (see ``side_reads``) and the frozen blocks -> feature (B, C) that replaces the
        backbone's output."""
        raise NotImplementedError

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """Weight (Cout, ...) and bias (Cout) that replace this method on ``op`` of block ``i``; None if it cannot be
        merged."""
        return None

    def fold_input(self, i: int, op: str, weight: Tensor) -> Optional[Tensor]:
        """The weight (Cout, Cin) that replaces ``weight`` together with ``on_input`` on ``op`` of block ``i``; None if
        it cannot be merged."""
        return None

    def fold_norm(self, i: int, op: str, weight: Tensor,
                  bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """The weight (Cout, C) and bias (Cout) of the linear ``op`` of block ``i`` that replace them together with
        ``on_norm`` of the norm that ``op`` reads; None if it cannot be merged. For methods whose ``on_norm`` is linear
        but no scale and shift per channel, which :meth:`fold` writes into the norm itself."""
        return None

    # -- initialisation -----------------------------------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Set all parameters to their published initial values."""
        raise NotImplementedError(f'{type(self).__name__} must define reset_parameters()')

    def on_loaded(self) -> None:
        """Called when the base has got weights: after the method was attached or initialised, and whenever weights of
        the base alone were loaded. A method whose start depends on :meth:`frozen` sets it here, unless it has been
        trained since."""

    def init_weights(self) -> None:
        """Called by MMEngine after the base's initialisers, which would have destroyed zero-initialised adapters."""
        self.reset_parameters()
        if self.base_blocks:
            self.on_loaded()
        self._is_init = True
