# SPDX-License-Identifier: Apache-2.0
"""Taps under which every sample of a batch has its own adapter.

Points that work row by row (linear, qkv, norm, branch) run each adapter on its own rows. Extra keys and values, and
prompts, stand side by side for all samples, padded to the longest, and a bias of minus infinity hides the padding from
the softmax.
"""

from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sites import Method, Tap

KeysValues = Optional[Tuple[Tensor, Tensor]]
Projected = Tuple[Tensor, Tensor, Tensor]


def rows_of(features: Any, rows: Tensor) -> Any:
    """The same rows (R,) of every tensor (B, ...) in nested tuples or lists -> (R, ...) each."""
    if isinstance(features, Tensor):
        return features[rows]
    if isinstance(features, (tuple, list)):
        # Necks return tuples, and heads want them back as tuples.
        return type(features)(rows_of(f, rows) for f in features)
    return features


class MixedTap(Tap):
    """What one block sees: the taps of several adapters, each with its rows of the batch.

    Args:
        index: Block.
        taps: One tap per adapter.
        rows: Samples of each adapter.
        batch: Samples B.
    """

    def __init__(self, index: int, taps: Sequence[Tap], rows: Sequence[Tensor], batch: int) -> None:
        super().__init__((), index)
        self.taps, self.rows, self.batch = tuple(taps), tuple(rows), batch
        # Samples with fewer prompts get padding, which a bias hides.
        self.num_prompts = max(tap.num_prompts for tap in taps)
        self.own_inputs = any(tap.own_inputs for tap in taps)
        # What Tap.separates asks; the lists of methods that it is made of are empty here.
        self._splits = self.own_inputs
        # Each sample's keys and values go through its own adapter.
        self.joins_kv = self.plain_qkv = False
        #: Width C of this block.
        self.width = 0
        #: The block before, where this one keeps the prompts that arrive from it.
        self.carried_from: Optional[Tap] = None
        self._extra: KeysValues = None

    def _rows(self, x: Tensor, windowed: bool = True) -> List[Tensor]:
        """Rows of each adapter in x (B * k, ...), where k windows of one sample follow one another; k = 1 unless
        ``windowed``.

        Raises:
            ValueError: If the batch has another size than the list of adapters.
        """
        windows, rest = divmod(len(x), self.batch)
        # A batch of another size would give samples to the wrong adapters, silently.
        if rest or not windows or (windows > 1 and not windowed):
            raise ValueError(f'{self.batch} adapter_ids for a batch of another size')
        if windows == 1:
            return [r.to(x.device) for r in self.rows]
        # Sample s has the rows s * windows + 0, 1, ...
        steps = torch.arange(windows, device=x.device)
        return [(r.to(x.device)[:, None] * windows + steps).flatten() for r in self.rows]

    def _on_rows(self, acts: Sequence[bool], x: Tensor, change: Callable[[Tap, Tensor], Tensor],
                 windowed: bool = True) -> Tensor:
        """``change(tap, x[rows])`` in the rows of every tap that acts; x and the result (B * k, ..., C)."""
        for tap, act, rows in zip(self.taps, acts, self._rows(x, windowed)):
            if act:
                # index_copy and not assignment: autograd needs the indices alone, and x is left as it was for
                # others.
                x = x.index_copy(0, rows, change(tap, x[rows]).to(x.dtype))
        return x

    def stream(self, x: Tensor) -> Tensor:
        """x (B, N, C) or (B, T, H, W, C) -> same shape, each sample through its adapter's ``on_stream``."""
        return self._on_rows([bool(t._stream) for t in self.taps], x, lambda tap, part: tap.stream(part), False)

    def entry(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> same shape, each sample through its adapter's ``on_entry``."""
        return self._on_rows([bool(t._entry) for t in self.taps], x, lambda tap, part: tap.entry(part), False)

    def input(self, op: str, x: Tensor) -> Tensor:
        """x (B * windows, N, Cin) -> same shape, each sample through its adapter's ``on_input``."""
        return self._on_rows([bool(t._input[op]) for t in self.taps], x, lambda tap, part: tap.input(op, part))

    def qkv(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, inputs: Optional[Projected] = None) -> Projected:
        """x, q, k, v (B * windows, N, C) -> q, k, v, each sample through its adapter's projections."""
        for tap, rows in zip(self.taps, self._rows(x)):
            if tap._project:
                own = None if inputs is None else tuple(t[rows] for t in inputs)
                parts = tap.qkv(x[rows], q[rows], k[rows], v[rows], own)
                q, k, v = (whole.index_copy(0, rows, part.to(whole.dtype)) for whole, part in zip((q, k, v), parts))
        return q, k, v

    def linear(self, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (B * windows, N, Cin), y (B * windows, N, Cout) -> (B * windows, N, Cout), each sample through its
        adapter's ``on_linear``."""
        for tap, rows in zip(self.taps, self._rows(x)):
            if tap._linear[op]:
                y = y.index_copy(0, rows, tap.linear(op, x[rows], y[rows]).to(y.dtype))
        return y

    def norm(self, op: str, y: Tensor) -> Tensor:
        """y (B, ..., C) -> same shape, each sample through its adapter's ``on_norm``."""
        for tap, rows in zip(self.taps, self._rows(y, windowed=False)):
            if tap._norm[op]:
                y = y.index_copy(0, rows, tap.norm(op, y[rows]).to(y.dtype))
        return y

    def branch(self, sub: str, residual: Tensor, x: Tensor, y: Tensor, inside: bool) -> Tensor:
        """residual, x, y (B * windows, N, C) -> y, each sample through its adapter's ``on_branch``."""
        for tap, rows in zip(self.taps, self._rows(y)):
            if tap._branch[sub, inside]:
                y = y.index_copy(0, rows, tap.branch(sub, residual[rows], x[rows], y[rows], inside).to(y.dtype))
        return y

    def kv(self) -> KeysValues:
        """Extra keys and values (B, heads or 1, P, head_dim), padded with zeros to the longest."""
        # prompts() has made them: it is called first in every block, and needs them for the gate.
        return self._extra

    def prompts(self, batch: int = 1) -> Optional[Tensor]:
        """Prompts (B, P, C), padded with zeros to the longest; sets the gate that hides all padding of this block.

        Where no adapter has prompts but some have extra keys, an empty set of prompts stands for them: the gate begins
        at the first extra key then.
        """
        found = [tap.prompts(len(rows)) for tap, rows in zip(self.taps, self.rows)]
        self._extra, hidden_keys = self._keys_values()
        given = [p for p in found if p is not None]
        self.prompt_gate = hidden_keys
        if not given:
            if self.carried_from is not None:
                self.prompt_gate = self.carried_from.prompt_gate
            if hidden_keys is None or self._extra is None:
                return None
            return self._extra[0].new_zeros(self.batch, 0, self.width)
        length, like = max(p.shape[1] for p in given), given[0]
        # Zeros and -inf at first; what an adapter brings is put in and uncovered row by row.
        prompts = like.new_zeros(self.batch, length, like.shape[2])
        hidden = like.new_full((self.batch, length), float('-inf'))
        for p, rows in zip(found, self.rows):
            if p is not None:
                rows = rows.to(p.device)
                # At the end: real prompts keep their places.
                padded = F.pad(p, (0, 0, 0, length - p.shape[1])).expand(len(rows), -1, -1)
                prompts = prompts.index_copy(0, rows, padded.to(prompts.dtype))
                hidden[rows, :p.shape[1]] = 0.
        padding = any(p is None or p.shape[1] < length for p in found)
        if hidden_keys is not None:
            self.prompt_gate = torch.cat([hidden, hidden_keys.to(hidden)], 1)
        elif padding:
            self.prompt_gate = hidden
        return prompts

    def _keys_values(self) -> Tuple[KeysValues, Optional[Tensor]]:
        found = [tap.kv() for tap in self.taps]
        given: List[KeysValues] = [
            None if kv is None else tuple(t if t.dim() == 4 else t[None] for t in kv) for kv in found
        ]
        present = [kv for kv in given if kv is not None]
        if not present:
            return None, None
        heads, length = max(k.shape[1] for k, _ in present), max(k.shape[2] for k, _ in present)
        like = present[0][0]
        both = [like.new_zeros(self.batch, heads, length, like.shape[3]) for _ in 'kv']
        hidden = like.new_full((self.batch, length), float('-inf'))
        for kv, rows in zip(given, self.rows):
            if kv is not None:
                rows = rows.to(like.device)
                for n, t in enumerate(kv):
                    # Keys shared by the heads are expanded where another adapter has one per head.
                    padded = F.pad(t, (0, 0, 0, length - t.shape[2])).expand(len(rows), heads, -1, -1)
                    both[n] = both[n].index_copy(0, rows, padded.to(like.dtype))
                hidden[rows, :kv[0].shape[2]] = 0.
        padding = any(kv is None or kv[0].shape[2] < length for kv in given)
        return (both[0], both[1]), hidden if padding else None


def _refuse(name: Any, methods: Mapping[str, Method], tune: Sequence[str]) -> None:
    if tune:
        raise ValueError(
            f'adapter {name!r} changes base parameters ({", ".join(tune[:3])}), which all samples of a batch share: '
            'run it in a batch of its own')
    for key, method in methods.items():
        points = method.points()
        if 'side' in points:
            raise ValueError(
                f'adapter {name!r}: {key} ({type(method).__name__}) replaces the output of the base and cannot be '
                f'mixed'
            )


def mixed_taps(backbone: nn.Module, adapters: Mapping[Any, Tuple[Mapping[str, Method], Sequence[str]]],
               ids: Sequence[Any]) -> None:
    """Put mixed taps into a backbone; ``backbone.petl.refresh()`` takes them out again.

    Args:
        backbone: Attached backbone.
        adapters: Name -> (methods, tune patterns).
        ids: One name per sample.

    Raises:
        ValueError: If an adapter cannot be mixed with the others.
    """
    if not ids:
        raise ValueError('adapter_ids is empty: give one name per sample')
    if backbone.petl.blocks[0].spec.frames:
        raise ValueError('clips that are read as frames cannot be mixed: give each adapter a batch of its own')
    petl, plans = backbone.petl, {}
    for name, (methods, tune) in adapters.items():
        _refuse(name, methods, tune)
        # Each adapter by itself: whether its prompts travel is decided without the others, and compared
        # below.
        plans[name] = petl.plan(methods)
    rows = [torch.tensor([n for n, chosen in enumerate(ids) if chosen == name]) for name in adapters]
    mixed = [MixedTap(i, [plans[name][i] for name in adapters], rows, len(ids)) for i in range(len(petl.blocks))]
    _check_streams(plans)
    _place(petl, mixed, plans)


def _check_streams(plans: Mapping[Any, Sequence[Tap]]) -> None:
    """Prompts in the stream must be there in the same blocks for all adapters that have prompts.

    Raises:
        ValueError: If they are not, if they are pooled, or if extra keys stand beside them.
    """
    prompting = {n: taps for n, taps in plans.items() if any(t.num_prompts for t in taps)}
    streams = {
        n: tuple((t.num_prompts and t.prompts_read, t.prompts_in > 0) for t in taps)
        for n, taps in prompting.items()
    }
    kinds = {n: tuple((bool(read), into) for read, into in s) for n, s in streams.items()}
    if len(set(kinds.values())) > 1:
        a, b = list(kinds)[:2]
        raise ValueError(f'adapters {a!r} and {b!r} let their prompts into different blocks and cannot be mixed')
    if len(plans) > 1 and any(taps[-1].prompts_alone for taps in plans.values()):
        raise ValueError("pool_prompts='only' cannot be mixed with other adapters")
    if any(read or into for s in kinds.values() for read, into in s):
        if len(plans) > len(prompting) and any(taps[-1].prompts_pooled for taps in prompting.values()):
            raise ValueError('pooled prompts cannot be mixed with samples that have none')
        if len({tuple(t.num_prompts for t in taps) for taps in prompting.values()}) > 1 and any(
                taps[-1].prompts_pooled for taps in prompting.values()):
            raise ValueError('pooled prompts of different numbers cannot be mixed')
        if any(t._kv for taps in plans.values() for t in taps):
            raise ValueError('prompts that stay in the stream cannot be mixed with extra keys and values')


def _place(petl: Any, mixed: Sequence[MixedTap], plans: Mapping[Any, Sequence[Tap]]) -> None:
    """Set what depends on the neighbours, and hand the taps to the modules."""
    carried = 0
    last = mixed[-1].taps[-1]
    mixed[-1].prompts_alone, mixed[-1].grid_dropped = last.prompts_alone, last.grid_dropped
    for tap, following in zip(mixed, [*mixed[1:], None]):
        own = [t for t in tap.taps if t.num_prompts]
        tap.prompts_in = carried
        tap.width = petl.blocks[tap.index].spec.dim
        tap.prompts_read = bool(own) and any(t.prompts_read for t in own)
        if own:
            carried = tap.num_prompts if tap.prompts_read else 0
        elif carried:
            # What entered before stays in the stream, and so does what hides its padding.
            tap.carried_from = mixed[tap.index - 1]
        if following is None:
            pooled = any(t.prompts_pooled for t in tap.taps)
            tap.prompts_dropped, tap.prompts_pooled = (0, carried) if pooled else (carried, 0)
    petl.place(mixed)
