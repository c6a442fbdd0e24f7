# SPDX-License-Identifier: Apache-2.0
"""The base class of all methods."""

import inspect
from typing import Any, Callable, Dict, FrozenSet, Mapping, Optional, Sequence, Tuple, Union

from mmengine.model import BaseModule
from torch import Tensor, nn

from .half import HalfCopies, wide
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
    #: output); 'input' of block 0: what the backbone was given.
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
    #: What the method must see of the training data before the first step to choose from it: None, 'features',
    #: 'gradients' of a contrastive loss on them, or 'loss', gradients of the cross-entropy of an untrained head. Then
    #: it has the buffer ``chosen``, and the four methods below.
    chooses_from: Optional[str] = None
    chosen: Tensor
    #: Whether ``on_linear`` of k and v treats rows (..., C) alike wherever they stand, so that rows of prompts and of
    #: tokens may be handed to it as one list (R, C).
    rowwise = False
    #: Whether the method acts along the frames of clips.
    over_time = False
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

    def refuse_pooled_attention(self, i: int, what: str, otherwise: str = "subs='ffn'") -> None:
        """Refuse a block whose attention gives fewer or wider tokens than it reads.

        Args:
            i: Block.
            what: What the method does there that is not defined.
            otherwise: The option with which it is defined.

        Raises:
            ValueError: Names the method and the block.
        """
        if self.specs[i].pools or self.specs[i].dim_in:
            raise ValueError(f'{type(self).__name__}: attention of block {i} gives fewer or wider tokens than it '
                             f'reads, and {what}: give {otherwise}, or leave the block out by layers')

    def refuse_post_norm(self, why: str) -> None:
        """Refuse adapted blocks whose norms stand behind the sublayers (Swin V2).

        Args:
            why: What these norms do that the method cannot be defined with.

        Raises:
            ValueError: Names the method and the block.
        """
        for i in self.layers:
            if self.specs[i].post_norm:
                raise ValueError(f'{type(self).__name__}: the norms of block {i} stand behind its sublayers and {why}; '
                                 'it is defined with norms before them')

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

    def frozen(self, i: int, op: str, form: str = 'wide') -> Tuple[Tensor, Optional[Tensor]]:
        """The base's weight (Cout, Cin) and bias (Cout) of one op of block ``i``, to be read only.

        Args:
            i: Block.
            op: Op.
            form: 'wide': float32 at least; 'stored': as the base keeps them, see ``base_dtype``; 'read': as its product
                reads them now, under autocast the copies in half precision that the block holds.

        Raises:
            ValueError: If the method is not attached.
        """
        if not self.base_blocks:
            raise ValueError(f'{type(self).__name__} is not attached to a backbone, so it has no frozen weights')
        block = self.base_blocks[i]
        held = block.tap.held(op) if form == 'read' else None
        weight, bias = held or block.op_parameters(op)
        found = [None if t is None else t.detach() for t in (weight, bias)]
        return tuple(t if t is None or form != 'wide' else wide(t) for t in found)  # type: ignore[return-value]

    def grid(self, i: int) -> Tuple[int, ...]:
        """The token grid of the input at hand in block ``i``: (H, W) or (T, H, W). Valid within a forward pass; of a
        method that is not attached, the grid of its specs."""
        return self.base_blocks[i].tap.grid if self.base_blocks else self.specs[i].grid

    def frames(self, i: int) -> int:
        """Images T of the clips at hand in block ``i`` of a backbone for images, whose batch holds B T images, clip by
        clip: their frames, or what ``on_images`` made of them; 0: no clips. Of a method that is not attached, the
        frames of its specs."""
        return self.base_blocks[i].tap.frames if self.base_blocks else self.specs[i].frames

    def base_positions(self) -> Tensor:
        """The base's table of positions (1, N, C) for tokens of the size for which it was built, class token first, of
        a backbone for images that reads clips. Valid within a forward pass.

        Raises:
            ValueError: If the method is not attached.
        """
        if not self.base_blocks:
            raise ValueError(f'{type(self).__name__} is not attached to a backbone, so it has no positions')
        return self.base_blocks[0].tap.run_time.positions

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
        """Width of the feature that ``on_side`` or ``on_pool`` returns; None where it is the backbone's own."""
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

    def joins(self, part: Any) -> bool:
        """Whether :meth:`on_parts` may stand for :meth:`on_part` of this place; False where a class does not define
        it."""
        return False

    @classmethod
    def on_parts(cls, parts: Sequence[Tuple['Method', Any]], owner: Optional[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """As :meth:`on_part` in evaluation mode for several methods of this class at once, one sample each.

        Args:
            parts: Methods, each with what :meth:`part` gives for the place; all of them :meth:`joins`.
            owner: Which of them changes which sample, (B, ); None: one each, in order.
            x: (B, N, Cin).
            y: (B, N, Cout).

        Returns:
            (B, N, Cout).
        """
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

    def on_channels(self, i: int, tokens: int, prompts: int) -> Optional[Tuple[Tensor, Tensor]]:
        """None or further channels of queries and keys, both (heads, N, R), the same for all samples and windows; of
        keys also (heads, K + N, R), with rows for the K keys of :meth:`on_kv` in front (global attention only).

        The logits gain scale * q_r k_r^T with the base's scale: a learned bias of rank R or less, between positions.

        Args:
            i: Block.
            tokens: N, the tokens of one attention without extra keys: leading tokens, prompts, grid tokens.
            prompts: How many of them are prompts in the stream.

        Raises:
            ValueError: If the method's channels are for another number of tokens.
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

    def on_images(self, x: Tensor) -> Tensor:
        """x (B, 3, T, H, W), clips for a backbone for images -> (B, 3, T', H, W), the images that it reads of each.
        Only of block 0."""
        return x

    def on_pool(self, y: Tensor) -> Tensor:
        """y (B, T', C), features of the images of each clip -> (B, C'), that of the clip. Only of the last block."""
        return y.mean(1)

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

    # -- choices before the first step --------------------------------------------------------------------------------

    def look(self, classes: int) -> None:
        """From now on note what passes and change nothing; taps must be refreshed.

        Args:
            classes: Number of classes of the labels.
        """
        raise NotImplementedError

    def saw(self, labels: Tensor) -> None:
        """A batch has passed whose samples have these labels (B)."""

    def noted(self) -> Tuple[Tensor, ...]:
        """What was noted, as sums over samples (...); the same shapes in every process."""
        raise NotImplementedError

    def choose(self) -> str:
        """Choose by what was noted, and act from now on; taps must be refreshed.

        Returns:
            What was chosen, in words.
        """
        raise NotImplementedError

    def init_weights(self) -> None:
        """Called by MMEngine after the base's initialisers, which would have destroyed zero-initialised adapters."""
        self.reset_parameters()
        if self.base_blocks:
            self.on_loaded()
        self._is_init = True
