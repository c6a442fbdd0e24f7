# SPDX-License-Identifier: Apache-2.0
"""Taps under which every sample of a batch has its own adapter.

Points that work row by row (linear, qkv, norm, branch) run each adapter on its own rows. Extra keys and values, and
prompts, stand side by side for all samples, padded to the longest, and a bias of minus infinity hides the padding from
the softmax.
"""

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sites import Method, Tap

#: Methods, tune patterns, and taps of all blocks where they are kept.
Chosen = Tuple[Mapping[str, Method], Sequence[str], Optional[Sequence[Tap]]]
KeysValues = Optional[Tuple[Tensor, Tensor]]
Projected = Tuple[Tensor, Tensor, Tensor]


def rows_of(features: Any, rows: Tensor) -> Any:
    """The same rows (R,) of every tensor (B, ...) in nested tuples, lists or tables -> (R, ...) each."""
    if isinstance(features, Tensor):
        return features[rows]
    if isinstance(features, (tuple, list)):
        # Necks return tuples, and heads want them back as tuples.
        return type(features)(rows_of(f, rows) for f in features)
    if isinstance(features, Mapping):  # outputs of transformers
        return {key: rows_of(value, rows) for key, value in features.items()}
    return features


def last_of(features: Any) -> Tensor:
    """The tensor (B, ...) that an output without a head ends with: of stages the last, of transformers' outputs the
    first."""
    if isinstance(features, Mapping):
        return last_of(next(iter(features.values())))
    return last_of(features[-1]) if isinstance(features, (tuple, list)) else features


class Joint:
    """One method of every adapter at one op, run for all samples at once.

    Args:
        parts: Method and what it has for the place, of every adapter that acts.
        owner: Which of them is whose, one per row that is changed; (R, ).
        rows: Those rows, (R, ); None for all of them in order.
        batch: Samples B.
    """

    def __init__(self, parts: Sequence[Tuple[Method, Any]], owner: Optional[Tensor], rows: Optional[Tensor],
                 batch: int) -> None:
        self.parts, self.owner, self.rows, self.batch = tuple(parts), owner, rows, batch

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B * windows, ..., Cin), y (B * windows, ..., Cout) -> y, each sample changed by its adapter."""
        if not self.parts:
            return y
        # The windows of a sample follow one another, so they are more tokens of it.
        flat_x, flat_y = (t.reshape(self.batch, -1, t.shape[-1]) for t in (x, y))
        change = type(self.parts[0][0]).on_parts
        if self.rows is None:
            return change(self.parts, self.owner, flat_x, flat_y).view(y.shape)
        part = change(self.parts, self.owner, flat_x[self.rows], flat_y[self.rows])
        return flat_y.index_copy(0, self.rows, part.to(y.dtype)).view(y.shape)


class Samples:
    """Which samples of a batch are whose.

    Args:
        places: Samples of each adapter.
        batch: Samples B.
        device: Where their numbers lie.
    """

    def __init__(self, places: Sequence[Sequence[int]], batch: int, device: torch.device) -> None:
        self.places, self.batch, self.device = [list(p) for p in places], batch, device
        self.rows = [torch.tensor(p, device=device) for p in self.places]
        self._chosen: Dict[Tuple[bool, ...], Tuple[List[int], Optional[Tensor], Optional[Tensor]]] = {}

    def of(self, acts: Tuple[bool, ...]) -> Tuple[List[int], Optional[Tensor], Optional[Tensor]]:
        """For the adapters that act: who owns which of their samples, in order; the same as numbers (R, ) where one
        owns several, else None; those samples (R, ), None where they are all."""
        # The same for all ops and blocks where the same adapters act.
        if acts not in self._chosen:
            acting = [p for p, act in zip(self.places, acts) if act]
            pairs = sorted((place, n) for n, places in enumerate(acting) for place in places)
            owner, rows = [n for _, n in pairs], [place for place, _ in pairs]
            single = len(owner) == len(acting)
            self._chosen[acts] = (owner, None if single else torch.tensor(owner, device=self.device),
                                  None if len(rows) == self.batch else torch.tensor(rows, device=self.device))
        return self._chosen[acts]


def joint_of(found: Sequence[Sequence[Tuple[Method, Any]]], samples: Samples) -> Optional[Joint]:
    """How the methods of several adapters act at once at one op; None where each must act on its own rows.

    Args:
        found: Per adapter the methods that act at the op, with what they have for the place.
        samples: Whose samples are which.
    """
    if any(len(one) > 1 for one in found):
        return None
    parts = [one[0] for one in found if one]
    if len({type(m) for m, _ in parts}) > 1 or any(p is None or m.training or not m.joins(p) for m, p in parts):
        return None
    owner, numbers, rows = samples.of(tuple(bool(one) for one in found))
    # Where each sample has an adapter of its own, the parts themselves are put in their order.
    return Joint([parts[n] for n in owner] if numbers is None else parts, numbers, rows, samples.batch)


class MixedTap(Tap):
    """What one block sees: the taps of several adapters, each with its rows of the batch.

    Args:
        index: Block.
        taps: One tap per adapter.
        samples: Samples of each adapter.
    """

    def __init__(self, index: int, taps: Sequence[Tap], samples: Samples) -> None:
        super().__init__((), index)
        self.taps, self.samples, self.rows, self.batch = tuple(taps), samples, samples.rows, samples.batch
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
        #: Ops whose adapters all act at once.
        self._joint: Dict[str, Optional[Joint]] = {}

    def _joined(self, op: str) -> Optional['Joint']:
        if op not in self._joint:
            self._joint[op] = joint_of([tap._linear[op] for tap in self.taps], self.samples)
        return self._joint[op]

    def _windows(self, x: Tensor, windowed: bool = True) -> int:
        """Windows k of one sample in x (B * k, ...); 1 unless ``windowed``.

        Raises:
            ValueError: If the batch has another size than the list of adapters.
        """
        windows, rest = divmod(len(x), self.batch)
        # A batch of another size would give samples to the wrong adapters, silently.
        if rest or not windows or (windows > 1 and not windowed):
            raise ValueError(f'{self.batch} adapter_ids for a batch of another size')
        return windows

    def _rows(self, x: Tensor) -> List[Tensor]:
        """Rows of each adapter in x (B * k, ...), where the k windows of one sample follow one another."""
        windows = self._windows(x)
        if windows == 1:
            return [r.to(x.device) for r in self.rows]
        # Sample s has the rows s * windows + 0, 1, ...
        steps = torch.arange(windows, device=x.device)
        return [(r.to(x.device)[:, None] * windows + steps).flatten() for r in self.rows]

    def _on_rows(self, acts: Sequence[Any], y: Tensor, change: Callable[[Tap, Tensor], Tensor],
                 windowed: bool = True) -> Tensor:
        """``change(tap, rows)`` in the rows of every tap that acts; y and the result (B * k, ..., C)."""
        self._windows(y, windowed)
        # Most points of most adapters are empty: no rows are counted out for them.
        for tap, act, rows in zip(self.taps, acts, self._rows(y) if any(acts) else ()):
            if act:
                # index_copy and not assignment: autograd needs the indices alone, and y is left as it was for
                # others.
                y = y.index_copy(0, rows, change(tap, rows).to(y.dtype))
        return y

    def stream(self, x: Tensor) -> Tensor:
        """x (B, N, C) or (B, T, H, W, C) -> same shape, each sample through its adapter's ``on_stream``."""
        return self._on_rows([t._stream for t in self.taps], x, lambda tap, rows: tap.stream(x[rows]), False)

    def entry(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> same shape, each sample through its adapter's ``on_entry``."""
        return self._on_rows([t._entry for t in self.taps], x, lambda tap, rows: tap.entry(x[rows]), False)

    def input(self, op: str, x: Tensor) -> Tensor:
        """x (B * windows, N, Cin) -> same shape, each sample through its adapter's ``on_input``."""
        return self._on_rows([t._input[op] for t in self.taps], x, lambda tap, rows: tap.input(op, x[rows]))

    def qkv(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, inputs: Optional[Projected] = None) -> Projected:
        """x, q, k, v (B * windows, N, C) -> q, k, v, each sample through its adapter's projections."""
        self._windows(x)
        if inputs is None and not any(whole for tap in self.taps for *_, whole in tap._project):
            found = [(y, self._joined(op)) for op, y in zip('qkv', (q, k, v))]
            if all(joint is not None for _, joint in found):
                q, k, v = (joint(x[:, :y.shape[1]], y) for y, joint in found if joint is not None)
                return q, k, v
        rows_of_each = self._rows(x) if any(tap._project for tap in self.taps) else ()
        for tap, rows in zip(self.taps, rows_of_each):
            if tap._project:
                own = None if inputs is None else tuple(t[rows] for t in inputs)
                parts = tap.qkv(x[rows], q[rows], k[rows], v[rows], own)
                q, k, v = (whole.index_copy(0, rows, part.to(whole.dtype)) for whole, part in zip((q, k, v), parts))
        return q, k, v

    def linear(self, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (B * windows, N, Cin), y (B * windows, N, Cout) -> (B * windows, N, Cout), each sample through its
        adapter's ``on_linear``."""
        joint = self._joined(op)
        if joint is not None:
            self._windows(x)
            return joint(x, y)
        return self._on_rows([t._linear[op] for t in self.taps], y,
                             lambda tap, rows: tap.linear(op, x[rows], y[rows]))

    def norm(self, op: str, y: Tensor) -> Tensor:
        """y (B, ..., C) -> same shape, each sample through its adapter's ``on_norm``."""
        return self._on_rows([t._norm[op] for t in self.taps], y, lambda tap, rows: tap.norm(op, y[rows]), False)

    def branch(self, sub: str, residual: Tensor, x: Tensor, y: Tensor, inside: bool) -> Tensor:
        """residual, x, y (B * windows, N, C) -> y, each sample through its adapter's ``on_branch``."""
        return self._on_rows([t._branch[sub, inside] for t in self.taps], y,
                             lambda tap, rows: tap.branch(sub, residual[rows], x[rows], y[rows], inside))

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


def groups_of(backbone: nn.Module, adapters: Mapping[Any, Chosen]) -> List[List[Any]]:
    """Names of adapters in groups, each of which one batch may mix; what cannot be mixed is a group of its own.

    Args:
        backbone: Attached backbone.
        adapters: Name -> (methods, tune patterns, taps or None).
    """
    if len(adapters) == 1 or backbone.petl.blocks[0].spec.frames:
        return [[name] for name in adapters]
    alone: List[List[Any]] = []
    alike: Dict[Any, List[Any]] = {}
    taps: Dict[Any, Sequence[Tap]] = {}
    for name, (methods, tune, plan) in adapters.items():
        try:
            _refuse(name, methods, tune)
        except ValueError:
            alone.append([name])
            continue
        plan = backbone.petl.plan(methods) if plan is None else plan
        kind = (*((t.num_prompts, bool(t.num_prompts and t.prompts_read), t.prompts_in > 0) for t in plan),
                plan[-1].prompts_alone, plan[-1].prompts_pooled, any(t._kv for t in plan))
        alike.setdefault(kind, []).append(name)
        taps[kind] = plan
    # Adapters whose prompts are alike stand for each other: few kinds are compared, however many adapters there are.
    mixed: List[List[Any]] = []
    for kind, names in alike.items():
        if not _fit([taps[kind]] * 2):
            alone += [[name] for name in names]
            continue
        group = next((g for g in mixed if _fit([taps[k] for k in (*g, kind)])), None)
        if group is None:
            mixed.append([kind])
        else:
            group.append(kind)
    return [*([name for kind in group for name in alike[kind]] for group in mixed), *alone]


def _fit(plans: Sequence[Sequence[Tap]]) -> bool:
    try:
        _check_streams(dict(enumerate(plans)))
    except ValueError:
        return False
    return True


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
        if any(method.active('channels', i) for i in method.layers):
            raise ValueError(f'adapter {name!r}: {key} ({type(method).__name__}) widens the queries and keys of all '
                             'samples alike: run it in a batch of its own')


def mixed_taps(backbone: nn.Module, adapters: Mapping[Any, Chosen], ids: Sequence[Any]) -> None:
    """Put mixed taps into a backbone; ``backbone.petl.refresh()`` takes them out again.

    Args:
        backbone: Attached backbone.
        adapters: Name -> (methods, tune patterns, taps of all blocks where they are kept, else None).
        ids: One name per sample.

    Raises:
        ValueError: If an adapter cannot be mixed with the others.
    """
    if not ids:
        raise ValueError('adapter_ids is empty: give one name per sample')
    if backbone.petl.blocks[0].spec.frames:
        raise ValueError('clips that are read as frames cannot be mixed: give each adapter a batch of its own')
    petl, plans = backbone.petl, {}
    for name, (methods, tune, plan) in adapters.items():
        _refuse(name, methods, tune)
        # Each adapter by itself: whether its prompts travel is decided without the others, and compared
        # below.
        plans[name] = petl.plan(methods) if plan is None else plan
    places: Dict[Any, List[int]] = {}
    for place, name in enumerate(ids):
        places.setdefault(name, []).append(place)
    samples = Samples([places[name] for name in adapters], len(ids), next(backbone.parameters()).device)
    mixed = [MixedTap(i, [plans[name][i] for name in adapters], samples) for i in range(len(petl.blocks))]
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
        tap.width = petl.blocks[tap.index].spec.entry_dim
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
