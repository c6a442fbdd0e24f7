# SPDX-License-Identifier: Apache-2.0
"""What one block sees of all methods."""

import threading
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional, Sequence, Set, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .method import Method
from .spec import ALL_OPS, NORMS, POINTS, SUBS

Projected = Tuple[Tensor, Tensor, Tensor]


class RunTime:
    """What all taps of a backbone know of the input at hand.

    Attributes:
        grid: Token grid behind the patch embedding, which sets it; (H, W) or (T, H, W).
        frames: Images T of each clip where the batch holds the B T images of B clips, clip by clip; 0: no clips. They
            are its frames unless a method chose others.
        positions: The base's table of positions (1, N, C), where clips are read; the forward pass sets it.
        mean_first: Whether the last norm averages the frames of a clip before it norms them.
    """

    def __init__(self, grid: Sequence[int] = ()) -> None:
        self.grid: Tuple[int, ...] = tuple(grid)
        self.frames = 0
        self.positions: Optional[Tensor] = None
        self.mean_first = False


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
        self._sort(methods, index)
        self._join()
        #: Whether elementwise results of this block are computed again in the backward pass by default.
        self.recomputes = any(m.recomputes for m in methods if index in m.layers)
        #: Token grid of the input at hand in this block, set by the block.
        self.grid: Tuple[int, ...] = ()
        #: Frames of the clips at hand, set by the block; 0: no clips.
        self.frames = 0
        #: What the taps of one backbone share.
        self.run_time = RunTime()
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
        #: Whether that pooling leaves the grid tokens out: the last block drops them, or the final norm does.
        self.prompts_alone = self.grid_dropped = False
        #: Log-gates (B or 1, num_prompts) added to the attention logits of this block's prompt keys, or None. Scoring
        #: uses it.
        self.prompt_gate: Optional[Tensor] = None
        #: Half-precision copies of the block's frozen weights by thread, then by op; held while the block runs.
        self.cast: Dict[int, Dict[str, Tuple[Tensor, Optional[Tensor]]]] = {}
        #: Threads that read nothing of the feed-forward network but its mean over the tokens, while they run it.
        self.averaging: Set[int] = set()
        #: Where a block's frozen activations are stored for side methods, or None.
        self.recorder: Optional[Dict[str, Tensor]] = None

    def _sort(self, methods: Sequence[Method], index: int) -> None:
        """Which methods act at which point, and where a point has several places, at which of them."""
        on = {p: tuple(m for m in methods if m.active(p, index)) for p in POINTS}
        # With what a method has for this place, so that a compiler sees no number or name of the place.
        self._linear = {
            op: tuple((m, _part(m, 'on_linear', index, op)) for m in on['linear'] if op in m.linear_ops(index))
            for op in ALL_OPS
        }
        self._input = {op: tuple(m for m in on['input'] if op in m.input_ops(index)) for op in ALL_OPS}
        # One entry per method that touches q, k or v, so that list order holds across the two points.
        self._project = tuple(
            (m, acts, m in on['qkv']) for m in methods
            for acts in [tuple([part for n, part in self._linear[op] if n is m] for op in 'qkv')]
            if any(acts) or m in on['qkv'])
        self._norm = {
            op: tuple((m, _part(m, 'on_norm', index, op)) for m in on['norm'] if op in m.norm_ops(index))
            for op in NORMS
        }
        self._branch = {
            (sub, inside): tuple(m for m in on['branch']
                                 if sub in m.branch_subs(index) and m.inside_drop_path is inside)
            for sub in SUBS
            for inside in (True, False)
        }
        self._kv, self._channels, self._prompts = (on[p] for p in ('kv', 'channels', 'prompts'))
        self._stream, self._entry, self._images, self._pool = (on[p] for p in ('stream', 'entry', 'images', 'pool'))
        #: Whether every method here is content with the tokens that are read.
        self.tokenwise = all(m.tokenwise for m in (*on['linear'], *on['input'], *on['norm'], *on['branch']))

    def held(self, op: str) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """This thread's half-precision copies of the weight (Cout, Cin) and bias (Cout) of an op, while the block runs;
        None where there are none."""
        if torch.compiler.is_compiling() or not self.cast:
            return None
        return self.cast.get(threading.get_ident(), {}).get(op)

    def _join(self) -> None:
        """What is known beforehand of keys and values; plain bools, which a compiler can tell."""
        #: Whether q, k and v have inputs of their own.
        self.own_inputs = any(len(self._input[op]) > 0 for op in 'qkv')
        # A plain bool, because a compiler cannot tell whether a tuple is empty.
        self._splits = self.own_inputs or len(self._project) > 0 or len(self._kv) > 0
        whole = any(on_qkv for *_, on_qkv in self._project)
        anew = [any(len(acts[op]) > 0 for _, acts, _ in self._project) for op in (1, 2)]
        #: Whether keys and values may be views of one product: nobody gives them inputs of their own, and methods make
        #: both anew or neither, so that one does not keep the memory of the other.
        self.joins_kv = not self.own_inputs and anew[0] == anew[1] and not whole
        #: Whether no method changes queries, keys or values of the tokens themselves.
        self.plain_qkv = not self.own_inputs and len(self._project) == 0
        #: Whether methods treat the rows of k and v alone, whatever their leading axes.
        self.rowwise = all(m.rowwise for m, *_ in self._project)
        self._whole = whole

    @property
    def prompts_have_channels(self) -> bool:
        """Whether a method gives its own prompts further channels, which they have as tokens of the stream alone."""
        return any(m in self._prompts for m in self._channels)

    @property
    def separates(self) -> bool:
        """Whether q, k and v need products of their own, because methods replace some of them, join further keys and
        values, keep keys and values alone, or few queries are read. As views of one product, a single one that is still
        needed would keep the memory of all three.
        """
        return (self._splits or (self.num_prompts > 0 and not self.prompts_read) or self.tokens_read is not None
                or (self.recorder is not None and 'k' in self.recorder))

    def keys_values(self, x: Tensor, k: Tensor, v: Tensor) -> Tuple[Tensor, Tensor]:
        """Apply ``on_linear`` of k and v: x (B, N, C), k and v (B, N, C) -> k, v. Where :attr:`joins_kv` holds."""
        for m, (_, on_k, on_v), _ in self._project:
            for part in on_k:
                k = self._linear_at(m, part, 'k', x, k)
            for part in on_v:
                v = self._linear_at(m, part, 'v', x, v)
        return k, v

    def query(self, x: Tensor, q: Tensor) -> Tensor:
        """Apply ``on_linear`` of q: x, q (B, N, C) -> q. Where :attr:`joins_kv` holds."""
        for m, (on_q, *_), _ in self._project:
            for part in on_q:
                q = self._linear_at(m, part, 'q', x, q)
        return q

    @property
    def queries(self) -> Optional[int]:
        """How many leading tokens ask; None: all. ``on_qkv`` gets the queries of all."""
        return None if self._whole else self.tokens_read

    def stream(self, x: Tensor) -> Tensor:
        """Apply ``on_stream``: (B, N, C) or (B, T, H, W, C) -> same shape."""
        for m in self._stream:
            x = m.on_stream(self.index, x)
        return x

    def entry(self, x: Tensor) -> Tensor:
        """Apply ``on_entry``: (B, N, C) -> (B, N, C)."""
        for m in self._entry:
            x = m.on_entry(x)
        return x

    def images(self, x: Tensor) -> Tensor:
        """Apply ``on_images``: (B, 3, T, H, W) -> (B, 3, T', H, W)."""
        for m in self._images:
            x = m.on_images(x)
        return x

    def pool(self, y: Tensor) -> Tensor:
        """``on_pool`` of the method that has it, else the mean: features of the images of clips (B, T', C) -> (B, C').
        """
        for m in self._pool:
            return m.on_pool(y)
        return y.mean(1)

    def input(self, op: str, x: Tensor) -> Tensor:
        """Apply ``on_input``: (..., Cin) -> (..., Cin), or the mean (B, 1, Cin) over tokens, see
        :meth:`averages`."""
        for m in self._input[op]:
            x = m.on_input(self.index, op, x)
        if op == 'fc2' and self.averaging and threading.get_ident() in self.averaging:
            return x.mean(1, keepdim=True)
        return x

    @contextmanager
    def averages(self, block: nn.Module) -> Iterator[bool]:
        """Within, this thread's feed-forward networks take the mean over tokens (B, N, F) -> (B, 1, F) before fc2, a
        product with one row instead of N.

        Args:
            block: The block, whose scale and drop-path treat all tokens of a sample alike.

        Yields:
            Whether they do: not where a method acts at fc2, dropout may follow, or a tracer follows.
        """
        thread = threading.get_ident()
        possible = not (torch.jit.is_tracing() or block.training or self._linear['fc2'])
        if possible:
            self.averaging.add(thread)
        try:
            yield possible
        finally:
            self.averaging.discard(thread)

    def qkv(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, inputs: Optional[Projected] = None) -> Projected:
        """Apply ``on_qkv`` and ``on_linear`` of q, k, v in config order.

        Args:
            x: Normed input of the block (B, N, C).
            q, k, v: (B, N, C), or q (B, ``queries``, C).
            inputs: Inputs of q, k and v where they have their own, see ``own_inputs``; same shapes.

        Returns:
            q, k and v.
        """
        x_q, x_k, x_v = (x[:, :q.shape[1]], x, x) if inputs is None else inputs
        for m, (on_q, on_k, on_v), on_qkv in self._project:
            for part in on_q:
                q = self._linear_at(m, part, 'q', x_q, q)
            for part in on_k:
                k = self._linear_at(m, part, 'k', x_k, k)
            for part in on_v:
                v = self._linear_at(m, part, 'v', x_v, v)
            if on_qkv:
                q, k, v = m.on_qkv(self.index, x, q, k, v)
        return q, k, v

    def _linear_at(self, m: Method, part: Any, op: str, x: Tensor, y: Tensor) -> Tensor:
        return m.on_linear(self.index, op, x, y) if part is None else m.on_part(part, x, y)

    def linear(self, op: str, x: Tensor, y: Tensor) -> Tensor:
        """Apply ``on_linear``: x (..., Cin), y (..., Cout) -> (..., Cout)."""
        for m, part in self._linear[op]:
            y = self._linear_at(m, part, op, x, y)
        return y

    def norm(self, op: str, y: Tensor) -> Tensor:
        """Apply ``on_norm``: (..., C) -> (..., C)."""
        for m, part in self._norm[op]:
            y = m.on_norm(self.index, op, y) if part is None else m.on_part(part, y, y)
        return y

    def branch(self, sub: str, residual: Tensor, x: Tensor, y: Tensor, inside: bool) -> Tensor:
        """Apply ``on_branch`` of the methods inside (before) or outside (after) the drop-path; all (..., C)."""
        for m in self._branch[sub, inside]:
            y = m.on_branch(self.index, sub, residual, x, y)
        return y

    def branches(self, sub: str) -> bool:
        """Whether a method acts on the branch 'attn' or 'ffn'."""
        return len(self._branch[sub, True]) + len(self._branch[sub, False]) > 0

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

    def channels(self, tokens: int) -> Optional[Tuple[Tensor, Tensor]]:
        """Further channels of queries (heads, N, R) and keys (heads, N or more, R) of all methods, or None; rows of
        keys beyond N are of the last extra keys.

        Args:
            tokens: N, the tokens of one attention without extra keys.
        """
        # Prompts that act as keys and values only stand among the extra keys.
        inside = (self.num_prompts if self.prompts_read else 0) if self.num_prompts else self.prompts_in
        found = [(queries, self._behind_extra(m, keys, keys.shape[1] - tokens))
                 for m in self._channels for c in [m.on_channels(self.index, tokens, inside)] if c is not None
                 for queries, keys in [c]]
        if len(found) < 2:
            return found[0] if found else None
        queries, keys = zip(*found)
        rows = max(k.shape[1] for k in keys)
        return torch.cat(queries, -1), torch.cat([F.pad(k, (0, 0, rows - k.shape[1], 0)) for k in keys], -1)

    def _behind_extra(self, m: Method, keys: Tensor, own: int) -> Tensor:
        """Channels of keys (heads, own + N, R), the first of the method's own extra keys -> (heads, own + others + N,
        R), with zeros for the extra keys of the methods behind it."""
        behind = self._kv[self._kv.index(m) + 1:] if own else ()
        others = sum(kv[0].shape[-2] for later in behind for kv in [later.on_kv(self.index)] if kv is not None)
        if not others:
            return keys
        return torch.cat([keys[:, :own], keys.new_zeros(len(keys), others, keys.shape[2]), keys[:, own:]], 1)

    def prompts(self, batch: int = 1) -> Optional[Tensor]:
        """Prompt tokens (1 or B, P, C) entering before this block, or None where the block keeps what arrives.

        Args:
            batch: Samples B in the stream.
        """
        found = [_drop(m, p, batch) for m in self._prompts for p in [m.on_prompts(self.index)] if p is not None]
        if len(found) < 2:
            return found[0] if found else None
        batch = max(len(p) for p in found)  # a method may give each sample its own
        return torch.cat([p.expand(batch, -1, -1) for p in found], 1)


def _part(method: Method, point: str, index: int, op: str) -> Any:
    """What a method has for one place; None where a subclass overrides the point itself."""
    owners = {name: next(c for c in type(method).__mro__ if name in c.__dict__) for name in ('part', point)}
    return method.part(index, op) if issubclass(owners['part'], owners[point]) else None


def _drop(method: Method, prompts: Tensor, batch: int) -> Tensor:
    """Prompts (1 or B, P, C), with a method's own mask per sample while training."""
    if not (method.training and method.sample_drop_rate):
        return prompts
    return F.dropout(prompts.expand(batch, -1, -1), method.sample_drop_rate)


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
            read = pooled if following is None else not following.num_prompts
            tap.prompts_read = full or tap.prompts_have_channels or read
            carried = tap.num_prompts if tap.prompts_read else 0
        tap.prompts_dropped = tap.prompts_pooled = 0
        if following is None:
            tap.prompts_dropped, tap.prompts_pooled = (0, carried) if pooled else (carried, 0)
