"""The waist: what a method may know about a backbone, and the named points at which it may act.

A :class:`Method` is a hook on the forward pass of a frozen transformer. It is built from a list of :class:`BlockSpec`
and overrides only the points it needs. A :class:`Tap` is what one block sees of all methods. Backbones call taps,
methods never see a backbone.

Order of the points in one block (``T`` = tap; an empty tap is the identity at no cost)::

    x -- T.prompts(i) -+- norm1 - T.norm - h - attention(h) - T.branch('attn') -(+)-+- norm2 - T.norm - h - ffn(h) -
    T.branch('ffn') -(+)-->
                       +----------------------------------------------------------+
                       +---------------------------------------------------+
    attention(h): project - q, k, v - T.qkv - heads - T.kv - softmax(q k^T + bias) v - proj - T.linear - drop-path
    ffn(h):       fc1 - T.linear - act - fc2 - T.linear - drop-path
"""

import difflib
from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

OPS = ('q', 'k', 'v', 'proj', 'fc1', 'fc2')
NORMS = ('embed', 'norm1', 'norm2', 'final')
SUBS = ('attn', 'ffn')
POINTS = ('qkv', 'linear', 'norm', 'branch', 'kv', 'prompts', 'side')

Layers = Union[None, int, str, Sequence[int]]
PerLayer = Union[Any, Sequence[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class BlockSpec:
    """One transformer block as a method sees it.

    Attributes:
        index: Position among all blocks of the backbone, 0..L-1 over all stages.
        stage: Stage of the block (always 0 for plain transformers).
        dim: Width C of the token stream.
        heads: Attention heads; C is divisible by it.
        ffn_dim: Hidden width of the feed-forward network.
        extra_tokens: Tokens in front of the grid tokens (class token, registers).
        grid: Token grid, (H, W) for images and (T, H, W) for videos; empty where it is not fixed.
        window: Attention window, same rank as ``grid``; None for global attention.
        patch: Pixels per token at the patch embedding, (h, w) or (t, h, w). Prompt initialisers need it.
        key_bias: Whether the trunk's key projection has a bias (VideoMAE has none).
    """
    index: int
    stage: int
    dim: int
    heads: int
    ffn_dim: int
    extra_tokens: int = 0
    grid: Tuple[int, ...] = ()
    window: Optional[Tuple[int, ...]] = None
    patch: Tuple[int, ...] = (16, 16)
    key_bias: bool = True

    @property
    def head_dim(self) -> int:
        """Width of one attention head, C / heads."""
        return self.dim // self.heads

    def op_dims(self, op: str) -> Tuple[int, int]:
        """(Cin, Cout) of one linear op of this block."""
        if op == 'fc1':
            return self.dim, self.ffn_dim
        if op == 'fc2':
            return self.ffn_dim, self.dim
        return self.dim, self.dim


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ``; did you mean 'a' or 'b'?`` for an unknown name, or all known names when nothing is near."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return '; did you mean ' + ' or '.join(repr(c) for c in close) + '?'
    return '; known: ' + ', '.join(known)


def parse_layers(layers: Layers, num_layers: int, owner: str = 'layers') -> Tuple[int, ...]:
    """Block indices named by ``layers``.

    Args:
        layers: None (all blocks), an int, a list of ints, or a string of comma-separated indices and inclusive ranges
            such as ``'0-5,11'``. Negative ints count from the end.
        num_layers: Number of blocks L.
        owner: Name of the option for error messages.

    Raises:
        ValueError: If a block lies outside 0..L-1, nothing is selected, or the string cannot be read.
    """
    if layers is None:
        return tuple(range(num_layers))
    if isinstance(layers, str):
        found: List[int] = []
        for part in layers.split(','):
            first, dash, last = part.strip().partition('-')
            if not first.isdigit() or (dash and not last.isdigit()):
                raise ValueError(
                    f"{owner}={layers!r} cannot be read: write block indices and inclusive ranges like '0-5,11'")
            ends = int(first), int(last if dash else first)
            found += range(ends[0], ends[1] + 1) if ends[1] < num_layers else ends  # no list of a billion blocks
    else:
        found = [layers] if isinstance(layers, int) else [int(i) for i in layers]
    resolved = [i + num_layers if i < 0 else i for i in found]
    outside = [f for f, i in zip(found, resolved) if not 0 <= i < num_layers]
    if outside:
        raise ValueError(
            f'{owner}={layers!r} names block {outside[0]}, but the backbone has blocks 0..{num_layers - 1}')
    if not resolved:
        raise ValueError(f'{owner}={layers!r} selects no block')
    return tuple(sorted(set(resolved)))


def per_layer(value: PerLayer, layers: Sequence[int], num_layers: int, name: str) -> Dict[int, Any]:
    """Spread a hyper-parameter over blocks.

    Args:
        value: One value for all blocks; a list with one value per adapted block (or per block of the backbone); or a
            mapping from ranges to values, for example ``{'0-5': 4, '6-11': 8}`` with the optional key ``'default'``.
        layers: Adapted blocks.
        num_layers: Number of blocks L.
        name: Name of the option for error messages.

    Returns:
        ``{block index: value}`` for every adapted block.

    Raises:
        ValueError: If a list has the wrong length or a mapping leaves an adapted block without a value.
    """
    if isinstance(value, Mapping):
        spread = {i: value['default'] for i in layers} if 'default' in value else {}
        for key, item in value.items():
            if key != 'default':
                spread.update({i: item for i in parse_layers(key, num_layers, name) if i in set(layers)})
        missing = [i for i in layers if i not in spread]
        if missing:
            raise ValueError(
                f"{name}={dict(value)!r} gives no value for block {missing[0]}: add its range or the key 'default'")
        return spread
    if isinstance(value, (list, tuple)):
        if len(value) == len(layers):
            return dict(zip(layers, value))
        if len(value) == num_layers:
            return {i: value[i] for i in layers}
        raise ValueError(f'{name} has {len(value)} values, but {len(layers)} blocks are adapted (of {num_layers}): '
                         f'give one value, {len(layers)} values or a mapping of ranges')
    return {i: value for i in layers}


def check_ops(ops: Union[str, Sequence[str]], owner: str, known: Sequence[str] = OPS) -> Tuple[str, ...]:
    """Validate a selection of ops; a string like ``'qv'`` is read letter by letter, a single op name as itself.

    Raises:
        ValueError: If an op is unknown or none is given.
    """
    if isinstance(ops, str):
        ops = [ops] if ops in tuple(known) else [o for o in (ops.split(',') if ',' in ops else ops)]
    ops = [str(o).strip() for o in ops]
    for op in ops:
        if op not in known:
            raise ValueError(f'{owner}: unknown op {op!r}' + nearest(op, known))
    if not ops:
        raise ValueError(f'{owner}: no op given; choose from {", ".join(known)}')
    return tuple(dict.fromkeys(ops))


def positive(value: Any, name: str, owner: str) -> int:
    """``value`` as an int >= 1.

    Raises:
        ValueError: If it is not a whole number >= 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{owner}: {name} must be a whole number >= 1, got {value!r}')
    return value


def add_product(y: Tensor, code: Tensor, weight: Tensor, scale: float = 1., bias: Optional[Tensor] = None) -> Tensor:
    """``y + scale * (code @ weight^T + bias)``, without a tensor for the product where the types are equal.

    Args:
        y: (..., Cout).
        code: (..., rank), with the same leading axes.
        weight: (Cout, rank).
        scale: Factor of the sum.
        bias: (Cout, ), or None.
    """
    if y.dtype != code.dtype or y.dim() < 2 or y.shape[:-1] != code.shape[:-1]:
        return torch.add(y, F.linear(code, weight, bias), alpha=scale)  # the sum has the wider type
    rows, code = y.flatten(0, -2), code.flatten(0, -2)
    if bias is None:
        total = torch.addmm(rows, code, weight.t(), alpha=scale)
    else:
        if scale != 1:
            weight, bias = scale * weight, scale * bias  # small, unlike the product
        # In place, and flat: writing into a view would make the backward pass copy.
        total = F.linear(code, weight, bias).add_(rows)
    return total.unflatten(0, y.shape[:-1])


class Method(BaseModule):
    """Base class of all methods: abstract; every method is final and owns all its parameters.

    A subclass builds its parameters in ``__init__`` from the specs, and sets them to their published initial values in
    :meth:`reset_parameters`, which must be safe to call again (MMEngine's ``init_weights`` calls it after the trunk's
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
    #: Whether the final pooling averages prompts with the grid tokens; None leaves it to the backbone's published form.
    pool_prompts: Optional[bool] = None
    #: Whether other prompt methods may add their tokens to this method's.
    stack = False
    #: Whether elementwise results (norms, activations, the method's own) are computed again in the backward pass by
    #: default, because the method would otherwise keep more than full fine-tuning does.
    recomputes = False
    #: Whether ``on_branch``, ``on_norm``, and ``on_linear`` of q, proj, fc1 and fc2 treat every token alone. Then a
    #: last block whose output is read at the class token only hands them that token only.
    tokenwise = False

    def __init__(self, specs: Sequence[BlockSpec], layers: Layers = None) -> None:
        super().__init__()
        if not specs:
            raise ValueError(f'{type(self).__name__}: the backbone has no blocks')
        self.specs: Tuple[BlockSpec, ...] = tuple(specs)
        self.layers: Tuple[int, ...] = parse_layers(layers, len(self.specs), f'{type(self).__name__}: layers')

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
        """x: input of the projection; all (B, N, C) -> q, k, v."""
        return q, k, v

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout), the op's input and output -> (..., Cout)."""
        return y

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

    def on_side(self, reads: Sequence[Mapping[str, Tensor]], blocks: Sequence[Any]) -> Tensor:
        """Per-block frozen activations (see ``side_reads``) and the frozen blocks -> feature (B, C) that replaces the
        backbone's output."""
        raise NotImplementedError

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """The (weight, bias) that replaces this method on ``op`` of block ``i``; None if it cannot be folded."""
        return None

    # -- initialisation -----------------------------------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Set all parameters to their published initial values."""
        raise NotImplementedError(f'{type(self).__name__} must define reset_parameters()')

    def init_weights(self) -> None:
        """Called by MMEngine after the trunk's initialisers, which would have destroyed zero-initialised adapters."""
        self.reset_parameters()
        self._is_init = True


class Tap:
    """What one block sees of all methods: per point only those that act there, in config order.

    A plain object, not a module, so it adds no state-dict key; deepcopy and pickle keep it consistent with the copied
    methods.

    Args:
        methods: All methods of the backbone in config order.
        index: Block index.
    """

    def __init__(self, methods: Sequence[Method] = (), index: int = 0) -> None:
        self.index = index
        on = {p: tuple(m for m in methods if m.active(p, index)) for p in POINTS}
        self._linear = {op: tuple(m for m in on['linear'] if op in m.linear_ops(index)) for op in OPS}
        # One entry per method that touches q, k or v, so that list order holds across the two points.
        self._project = tuple(
            entry for entry in ((m, tuple(m in self._linear[op] for op in 'qkv'), m in on['qkv']) for m in methods)
            if any(entry[1]) or entry[2])
        self._norm = {op: tuple(m for m in on['norm'] if op in m.norm_ops(index)) for op in NORMS}
        self._branch = {
            (sub, inside): tuple(m for m in on['branch']
                                 if sub in m.branch_subs(index) and m.inside_drop_path is inside)
            for sub in SUBS
            for inside in (True, False)
        }
        self._kv = on['kv']
        self._prompts = on['prompts']
        #: Whether elementwise results of this block are computed again in the backward pass by default.
        self.recomputes = any(m.recomputes for m in methods if index in m.layers)
        #: Whether every method here is content with the tokens that are read.
        self.tokenwise = all(m.tokenwise for m in (*on['linear'], *on['norm'], *on['branch']))
        #: How many leading tokens somebody reads after this block; None: all. Set for the last block.
        self.tokens_read: Optional[int] = None
        #: Tokens that this block puts in front of the grid tokens.
        self.num_prompts = sum(m.num_prompts(index) for m in self._prompts)
        # The next four are set for all blocks together, because they depend on the neighbours (see ``plan_prompts``).
        #: Prompt tokens that arrive in the stream from the block before.
        self.prompts_in = 0
        #: Whether this block's prompts must travel in the stream because somebody reads their outputs; if not, they act
        #: as extra keys and values only, which is exact and cheaper.
        self.prompts_read = True
        #: Prompt tokens to take out of the stream after this block (last block only).
        self.prompts_dropped = 0
        #: Prompt tokens that the final pooling averages together with the grid tokens.
        self.prompts_pooled = 0
        #: Log-gates (B or 1, num_prompts) added to the attention logits of this block's prompt keys, or None. Scoring
        #: uses it.
        self.prompt_gate: Optional[Tensor] = None
        #: Where a block's frozen activations are stored for side methods, or None.
        self.recorder: Optional[Dict[str, Tensor]] = None

    @property
    def separates(self) -> bool:
        """Whether q, k and v need products of their own, because methods replace some of them, join further keys and
        values, or few queries are read. As views of one product, a single one that is still needed would keep the
        memory of all three.
        """
        return bool(self._project or self._kv or (self.num_prompts and not self.prompts_read) or self.tokens_read)

    @property
    def queries(self) -> Optional[int]:
        """How many leading tokens ask; None: all. ``on_qkv`` gets the queries of all."""
        return None if any(on_qkv for *_, on_qkv in self._project) else self.tokens_read

    def qkv(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Apply ``on_qkv`` and ``on_linear`` of q, k, v in config order; all (B, N, C), or q (B, ``queries``, C)."""
        for m, (on_q, on_k, on_v), on_qkv in self._project:
            if on_q:
                q = m.on_linear(self.index, 'q', x[:, :q.shape[1]], q)
            if on_k:
                k = m.on_linear(self.index, 'k', x, k)
            if on_v:
                v = m.on_linear(self.index, 'v', x, v)
            if on_qkv:
                q, k, v = m.on_qkv(self.index, x, q, k, v)
        return q, k, v

    def linear(self, op: str, x: Tensor, y: Tensor) -> Tensor:
        """Apply ``on_linear``: x (..., Cin), y (..., Cout) -> (..., Cout)."""
        for m in self._linear[op]:
            y = m.on_linear(self.index, op, x, y)
        return y

    def norm(self, op: str, y: Tensor) -> Tensor:
        """Apply ``on_norm``: (..., C) -> (..., C)."""
        for m in self._norm[op]:
            y = m.on_norm(self.index, op, y)
        return y

    def branch(self, sub: str, residual: Tensor, x: Tensor, y: Tensor, inside: bool) -> Tensor:
        """Apply ``on_branch`` of the methods inside (before) or outside (after) the drop-path; all (..., C)."""
        for m in self._branch[sub, inside]:
            y = m.on_branch(self.index, sub, residual, x, y)
        return y

    def kv(self) -> Optional[Tuple[Tensor, Tensor]]:
        """Extra keys and values of all methods, (heads or 1, P, head_dim) each, or None."""
        found = [kv for m in self._kv for kv in [m.on_kv(self.index)] if kv is not None]
        if not found:
            return None
        if len(found) == 1:
            return found[0]
        shape = torch.broadcast_shapes(*(k.shape[:-2] for k, _ in found))
        return (torch.cat([k.expand(*shape, -1, -1) for k, _ in found], -2),
                torch.cat([v.expand(*shape, -1, -1) for _, v in found], -2))

    def prompts(self) -> Optional[Tensor]:
        """Prompt tokens (1, P, C) entering before this block, or None where the block keeps what arrives."""
        found = [p for m in self._prompts for p in [m.on_prompts(self.index)] if p is not None]
        if len(found) < 2:
            return found[0] if found else None
        batch = max(len(p) for p in found)  # a method may give each sample its own
        return torch.cat([p.expand(batch, -1, -1) for p in found], 1)


def plan_prompts(taps: Sequence[Tap], pooled: bool, full: bool = False) -> None:
    """Decide for all blocks together where prompt tokens travel in the stream.

    A block's prompts whose outputs nobody reads (the next block brings its own, or the final pooling ignores them) act
    as extra keys and values only.

    Args:
        taps: Taps of all blocks in order.
        pooled: Whether the final pooling averages prompts with the grid tokens.
        full: Let every prompt travel in the stream (the textbook form; same outputs, more work).
    """
    carried = 0
    for tap, following in zip(taps, [*taps[1:], None]):
        tap.prompts_in = carried
        if tap.num_prompts:
            tap.prompts_read = full or (pooled if following is None else not following.num_prompts)
            carried = tap.num_prompts if tap.prompts_read else 0
        tap.prompts_dropped = tap.prompts_pooled = 0
        if following is None:
            tap.prompts_dropped, tap.prompts_pooled = (0, carried) if pooled else (carried, 0)
