# SPDX-License-Identifier: Apache-2.0
"""The one sited attention: scaled-dot-product attention with extra keys and values, window bias and shift mask.

Four upstream attentions meet here. Each backbone supplies only its projections and its output; the maths in between is
this file.
"""

import itertools
from functools import partial
from typing import Callable, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import LOOK_UP, SMALL_PRODUCT, recomputed
from ..sites import Tap
from .cast import apply_linear, held
from .embed import linear_slice

#: Bytes of all masks with biases of a block up to which its windows are attended in one call.
WHOLE_MASK = 64 * 2**20

KeysValues = Optional[Tuple[Tensor, Tensor]]
Rotation = Callable[[Tensor, Tensor], Tuple[Tensor, Tensor]]


class Projections:
    """Mixin for attentions with one fused qkv product: projections in and out, with the points of the waist."""

    tap: Tap
    qkv: nn.Linear
    proj: nn.Linear
    #: Whether upstream calls the fused layer; where it only reads its weight, peft's replacement of it has no effect.
    calls_qkv = True

    def op_parameters(self, op: str) -> Tuple[Tensor, Optional[Tensor]]:
        """Weight (C, C) and bias of q, k, v or proj, as views of the parameters."""
        if op == 'proj':
            return self.proj.weight, self.proj.bias
        # Views, not copies: merging writes through them into the fused weight.
        return linear_slice(self.qkv.weight, op), None if self.qkv.bias is None else linear_slice(self.qkv.bias, op)

    def read(self, op: str) -> Tuple[Tensor, Optional[Tensor]]:
        """Weight (Cout, Cin) and bias (Cout) of q, k, v or proj as its product reads them."""
        return held(self.tap, op) or self.op_parameters(op)

    def fused(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., 3 C)."""
        return apply_linear(self.qkv, self.tap, 'qkv', x)

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x, all (B, N, C); queries of the leading tokens only where no other is read."""
        # One product for all three, as upstream: no method is between them.
        if not self.tap.separates:
            return self.tap.qkv(x, *self.fused(x).chunk(3, -1))
        if self.tap.joins_kv:
            return self.tap.qkv(x, self._ask(x), *self.keys_and_values(x).chunk(2, -1))
        # The last block of which only the class token is read asks for that token alone; keys and values
        # come from all.
        asking = x[:, :self.tap.queries]
        inputs = tuple(self.tap.input(op, t) for t, op in zip((asking, x, x), 'qkv'))
        q, k, v = (F.linear(t, *self.read(op)) for t, op in zip(inputs, 'qkv'))
        # Methods that read x get what the op itself read, where on_input changed it.
        return self.tap.qkv(x, q, k, v, inputs if self.tap.own_inputs else None)  # type: ignore[arg-type]

    def _ask(self, x: Tensor) -> Tensor:
        return F.linear(x[:, :self.tap.queries], *self.read('q'))

    def keys_and_values(self, x: Tensor) -> Tensor:
        """Keys and values by one product, (B, N, C) -> (B, N, 2 C)."""
        found = held(self.tap, 'qkv')
        weight, bias = (self.qkv.weight, self.qkv.bias) if found is None else found
        first = len(weight) // 3
        if found is not None or bias is not None:
            return F.linear(x, weight[first:], None if bias is None else bias[first:])
        of_k, of_v = (self.op_parameters(op)[1] for op in 'kv')
        if of_v is not None:  # VideoMAE's keys have no bias
            bias = torch.cat([torch.zeros_like(of_v) if of_k is None else of_k, of_v])
        return F.linear(x, weight[first:], bias)

    def of_prompts(self, prompts: Optional[Tensor]) -> KeysValues:
        """Keys and values of prompts, (1 or B, P, C) each; None where there are none."""
        if prompts is None:
            return None
        if not self.tap.joins_kv:
            return self.project(prompts)[1:]
        return self.tap.keys_values(prompts, *self.keys_and_values(prompts).chunk(2, -1))

    def project_with(self, x: Tensor, prompts: Optional[Tensor]) -> Tuple[Tensor, Tensor, Tensor, KeysValues, bool]:
        """Queries, keys and values of x (B, N, C), and those of prompts (1 or B, P, C) that act as keys and values.

        Returns:
            q, k, v as of :meth:`project`; keys and values (1 or B, P, C) of the prompts that are still to be joined, or
            None; and whether k and v begin with those of the prompts.
        """
        if prompts is None:
            return (*self.project(x), None, False)
        if not self.tap.plain_qkv:
            if self.tap.joins_kv and self.tap.rowwise and len(prompts) == 1:
                return (*self._rows(x, prompts), False)
            return (*self.project(x), self.of_prompts(prompts), False)
        both = torch.cat([self.keys_and_values(prompts).expand(len(x), -1, -1), self.keys_and_values(x)], 1)
        return (self._ask(x), *both.chunk(2, -1), None, True)  # type: ignore[return-value]

    def _rows(self, x: Tensor, prompts: Tensor) -> Tuple[Tensor, Tensor, Tensor, KeysValues]:
        """Queries, keys and values of x (B, N, C), and keys and values of shared prompts (1, P, C), whose rows join
        those of the tokens in every product."""
        tokens = x.shape[0] * x.shape[1]
        rows = recomputed(_join_rows, x, prompts)
        k, v = self.tap.keys_values(rows, *self.keys_and_values(rows).chunk(2, -1))
        x = rows[:tokens].view(x.shape)  # so that x itself need not be kept
        asking = x[:, :self.tap.queries]
        q = self.tap.query(asking, F.linear(asking, *self.read('q')))
        k, v, *inner = (t for part in (slice(0, tokens), slice(tokens, None)) for t in (k[part], v[part]))
        return q, k.view(x.shape), v.view(x.shape), (inner[0][None], inner[1][None])

    def output(self, y: Tensor) -> Tensor:
        """Output projection, (B, N, C) -> (B, N, C)."""
        y = self.tap.input('proj', y)
        product = partial(apply_linear, self.proj, self.tap, 'proj')
        return self.tap.linear('proj', y, recomputed(product, y, level=SMALL_PRODUCT))


class SplitBias(Projections):
    """A fused product whose biases of q and v are parameters of their own; keys have none."""

    q_bias: Optional[Tensor]
    v_bias: Optional[Tensor]

    @property
    def calls_qkv(self) -> bool:  # type: ignore[override]
        # With biases of their own upstream calls F.linear, past the layer.
        return getattr(self, 'q_bias', None) is None

    def fused(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., 3 C)."""
        if getattr(self, 'q_bias', None) is None:
            return super().fused(x)
        found = held(self.tap, 'qkv')
        if found is None:
            # A bias of the keys would mostly cancel in the softmax, so these models have none.
            found = self.qkv.weight, torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x, *found)

    def op_parameters(self, op: str) -> Tuple[Tensor, Optional[Tensor]]:
        """Weight (C, C) and bias (C) of q, k, v or proj; there is no bias of the keys."""
        if op == 'proj' or getattr(self, 'q_bias', None) is None:
            return super().op_parameters(op)
        return linear_slice(self.qkv.weight, op), getattr(self, f'{op}_bias') if op in 'qv' else None


def _join_rows(x: Tensor, prompts: Tensor) -> Tensor:
    """Rows of tokens (B, N, C), then those of prompts (1, P, C), in the type of the tokens, (B N + P, C)."""
    return torch.cat([x.flatten(0, 1), prompts[0].to(x.dtype)])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    b, n, c = x.shape
    return x.view(b, n, heads, c // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads * d)."""
    b, h, n, d = x.shape
    return x.transpose(1, 2).reshape(b, n, h * d)


def join_extra(tap: Tap, prompts: KeysValues, heads: int) -> KeysValues:
    """Extra keys and values of one block: those of its prompts, then those of ``tap.kv()``.

    Args:
        tap: The block's tap.
        prompts: Projected prompts, both (1 or B, P, C), or None.
        heads: Attention heads h.

    Returns:
        None, or keys and values (h or 1, P + K, d), with a leading batch axis where samples differ.
    """
    found = tap.kv()
    if prompts is None:
        return found
    keys, values = (split_heads(t, heads) for t in prompts)
    if found is None:
        return keys, values
    # A batch axis of one, so that both kinds broadcast against projected prompts.
    extra_k, extra_v = (t if t.dim() == 4 else t[None] for t in found)
    shape = torch.broadcast_shapes(keys.shape[:2], extra_k.shape[:2])
    # In the type of the projected keys: under autocast learned ones are still float32.
    return (torch.cat([keys.expand(*shape, -1, -1), extra_k.to(keys.dtype).expand(*shape, -1, -1)], 2),
            torch.cat([values.expand(*shape, -1, -1), extra_v.to(values.dtype).expand(*shape, -1, -1)], 2))


def prepend(extra: KeysValues, k: Tensor, v: Tensor) -> Tuple[Tensor, Tensor]:
    """Put extra keys and values in front of k and v, both (B, h, N, d)."""
    if extra is None:
        return k, v
    shape = k.shape[:-2]
    # Copied by the concatenation, once; before it they are views.
    extra_k, extra_v = (t.to(k.dtype).expand(*shape, -1, -1) for t in extra)
    return torch.cat([extra_k, k], 2), torch.cat([extra_v, v], 2)


def record_keys_values(tap: Tap, k: Tensor, v: Tensor, heads: int) -> None:
    """Store a block's keys and values (B, N, C), already there for its own attention, where a side method reads
    them."""
    if tap.recorder is not None and 'k' in tap.recorder:
        tap.recorder.update(k=split_heads(k, heads), v=split_heads(v, heads))


def gate_bias(tap: Tap, keys: int, start: int) -> Optional[Tensor]:
    """Attention bias (B or 1, 1, 1, keys) that adds ``tap.prompt_gate`` to the prompt columns, which begin at
    ``start``."""
    if tap.prompt_gate is None:
        return None
    gate = tap.prompt_gate
    # Zeros elsewhere: a bias that changes nothing.
    return F.pad(gate, (start, keys - start - gate.shape[-1]))[:, None, None, :]


def widen(q: Tensor, k: Tensor, v: Tensor, channels: KeysValues, scale: Optional[float]) -> Tuple[
        Tensor, Tensor, Tensor, Optional[float]]:
    """Give queries and keys their further channels.

    Args:
        q, k, v: (B, h, N', d), (B, h, K + N, d) twice; q may hold the leading tokens only.
        channels: Of queries and keys, (h, N, R) each, or None. Extra keys, which come first, have none but where there
            are more rows for keys: these are of the last of them.
        scale: Factor of the logits; None means d ** -0.5.

    Returns:
        q, k, v of d + R channels and zeros up to a multiple of 8, those of v being zeros, and the factor of d channels.
    """
    if channels is None:
        return q, k, v, scale
    # Beside a bias the fused kernels of GPUs take no other widths.
    of_q, of_k = (F.pad(t.to(q.dtype), (0, -(q.shape[-1] + t.shape[-1]) % 8)) for t in channels)
    of_q, of_k = of_q[:, :q.shape[2]], F.pad(of_k, (0, 0, k.shape[2] - of_k.shape[1], 0))
    scale = q.shape[-1]**-0.5 if scale is None else scale
    q, k = (torch.cat([t, more.expand(len(t), -1, -1, -1)], -1) for t, more in ((q, of_q), (k, of_k)))
    # The fused kernels want one width; the channels that this adds to the output are cut off again.
    return q, k, F.pad(v, (0, of_q.shape[-1])), scale


def attend(q: Tensor,
           k: Tensor,
           v: Tensor,
           heads: int,
           extra: KeysValues = None,
           bias: Optional[Tensor] = None,
           drop_rate: float = 0.,
           scale: Optional[float] = None,
           rotate: Optional[Rotation] = None,
           channels: KeysValues = None) -> Tensor:
    """Global attention.

    Args:
        q, k, v: (B, N, C) each.
        heads: Number of heads h.
        extra: Extra keys and values, see :func:`join_extra`; they come first.
        bias: Added to the logits, broadcastable to (B, h, N, P + N).
        drop_rate: Dropout on the attention weights.
        scale: Factor of the logits; None means head_dim ** -0.5.
        rotate: Applied to q and k after the heads are split (rotary embeddings, norms of q and k): (B, h, N', d) and
            (B, h, N, d) -> same shapes; q may hold the leading tokens only. Extra keys have no place and are not
            rotated. Methods change q and k before, on (B, N, C).
        channels: Further channels of queries and keys, (h, N, R) each; they are not rotated.

    Returns:
        (B, N, C).
    """
    q, k, v = (split_heads(t, heads) for t in (q, k, v))
    if rotate is not None:
        # Before extra keys join, which have no place in the grid and must not be turned.
        q, k = rotate(q, k)
    k, v = prepend(extra, k, v)
    width = v.shape[-1]
    q, k, v, scale = widen(q, k, v, channels, scale)
    if bias is not None:
        # The fused kernels want the type of the queries.
        bias = bias.to(q.dtype)
    # A copy of the attention's output, which the kernel keeps anyway: made again rather than kept
    # twice.
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop_rate, scale=scale)
    return recomputed(merge_heads, y if channels is None else y[..., :width])


def window_groups(windows: Sequence[int], shifted: Sequence[bool]) -> List[Tuple[slice, ...]]:
    """Blocks of windows that share one shift mask.

    The cyclic shift joins distant tokens only in the last window of each shifted axis, so at most two groups per axis
    exist.

    Args:
        windows: Number of windows along each axis.
        shifted: Which axes are shifted.

    Returns:
        Slices over the window grid, in lexicographic order.
    """
    # The last window along a shifted axis is cut in two by the shift; all others are whole and share
    # the zero mask.
    axes = [[slice(0, n - 1), slice(n - 1, n)] if s and n > 1 else [slice(0, n)] for n, s in zip(windows, shifted)]
    return list(itertools.product(*axes))


def _join(parts: List[Tensor], lengths: Sequence[int]) -> Tensor:
    """Concatenate lexicographically ordered groups back along the axes 1, 2, ...; ``lengths``: groups per axis."""
    for axis in reversed(range(len(lengths))):
        step = lengths[axis]
        parts = [torch.cat(parts[i:i + step], axis + 1) if step > 1 else parts[i] for i in range(0, len(parts), step)]
    return parts[0]


def attend_windows(q: Tensor,
                   k: Tensor,
                   v: Tensor,
                   heads: int,
                   bias: Tensor,
                   mask: Optional[Tensor] = None,
                   windows: Sequence[int] = (),
                   shifted: Sequence[bool] = (),
                   prompts: int = 0,
                   extra: KeysValues = None,
                   drop_rate: float = 0.,
                   scale: Optional[float] = None,
                   gate: Optional[Tensor] = None,
                   channels: KeysValues = None) -> Tensor:
    """Window attention with relative position bias and shift mask.

    All windows are attended together where their biases with masks are small; else those with the same mask, so no
    large (windows, h, N, N) bias is ever formed.

    Args:
        q, k, v: (B * windows, P + N, C), P leading prompt tokens in every window.
        heads: Number of heads h.
        bias: Relative position bias (h, N, N).
        mask: Shift mask (windows, N, N) of 0 and -100, or None.
        windows: Windows along each axis; needed with ``mask``.
        shifted: Which axes are shifted; needed with ``mask``.
        prompts: P. Prompts see and are seen by all tokens of the window.
        extra: Extra keys and values (h or 1, K, d), which all tokens see, with a batch axis where samples differ;
            they come first.
        drop_rate: Dropout on the attention weights.
        scale: Factor of the logits.
        gate: Added to the logits of the keys, (B * windows or 1, 1, 1, K + P + N), see :func:`gate_bias`.
        channels: Further channels of queries and keys, (h, P + N, R) each.

    Returns:
        (B * windows, P + N, C).
    """
    # Rows and columns in front of the tokens that have a relative position.
    front = (prompts, prompts + (0 if extra is None else extra[0].shape[-2]))
    if mask is None:
        whole = recomputed(window_bias, bias, None, gate, front, q.dtype, level=LOOK_UP)
        return attend(q, k, v, heads, per_window(extra, len(q)), whole, drop_rate, scale, channels=channels)
    # A gate per sample cannot share one mask over the batch.
    grouped = gate is not None and len(gate) > 1
    shared = extra is None or extra[0].dim() == 3 or len(extra[0]) == 1
    if not grouped and shared and mask.numel() * heads * q.element_size() <= WHOLE_MASK:
        whole = recomputed(window_bias, bias, mask, gate, front, q.dtype, level=LOOK_UP)
        return _attend_at_once(q, k, v, heads, extra, whole, drop_rate, scale, channels)
    # The window grid becomes axes, so that groups are slices.
    q, k, v = (t.view(-1, *windows, *t.shape[1:]) for t in (q, k, v))
    gate = gate.view(-1, *windows, *gate.shape[1:]) if grouped else gate
    mask = mask.view(*windows, *mask.shape[1:])
    parts = []
    for group in window_groups(windows, shifted):
        index = (slice(None), *group)
        # All windows of a group have the same mask; the first speaks for them.
        group_mask = mask[tuple(s.start for s in group)]
        part_gate = gate[index].flatten(0, len(windows)) if grouped else gate  # type: ignore[index]
        part_bias = recomputed(window_bias, bias, group_mask, part_gate, front, q.dtype, level=LOOK_UP)
        # Slices are copies: as they can be cut again, they are not kept.
        part_qkv = (recomputed(lambda t, i: t[i].flatten(0, len(windows)), t, index) for t in (q, k, v))
        samples = len(q) * torch.Size(s.stop - s.start for s in group).numel()
        own = per_window(extra, samples)
        part_q, part_k, part_v = part_qkv
        part = attend(part_q, part_k, part_v, heads, own, part_bias, drop_rate, scale, channels=channels)
        parts.append(part.view(-1, *(s.stop - s.start for s in group), *part.shape[1:]))
    lengths = [2 if s and n > 1 else 1 for n, s in zip(windows, shifted)]
    return recomputed(lambda *parts: _join(list(parts), lengths).flatten(0, len(windows)), *parts)


def per_window(extra: KeysValues, windows: int) -> KeysValues:
    """Extra keys and values of each sample (B, h or 1, K, d), once for each of its windows (``windows`` of all samples
    together); those that all samples share stay as they are."""
    if extra is None or extra[0].dim() == 3 or len(extra[0]) == 1:
        return extra
    keys, values = (t.repeat_interleave(windows // len(t), 0) for t in extra)
    return keys, values


def _attend_at_once(q: Tensor, k: Tensor, v: Tensor, heads: int, extra: KeysValues, bias: Tensor, drop_rate: float,
                    scale: Optional[float], channels: KeysValues) -> Tensor:
    """As :func:`attend` for windows (B * windows, N, C) with a bias (windows, h, N, K) each: windows stand beside the
    heads, so that samples share the bias."""
    windows = len(bias)

    def split(t: Tensor) -> Tensor:
        return split_heads(t, heads).unflatten(0, (-1, windows)).flatten(1, 2)

    q, k, v = (recomputed(split, t) for t in (q, k, v))
    if extra is not None:
        flat = (t.view(-1, *t.shape[-2:]) for t in extra)
        # Every window of every sample sees the same extra keys; only here they are repeated in memory.
        extra = tuple(t.expand(heads, -1, -1).repeat(windows, 1, 1) for t in flat)  # type: ignore[assignment]
        k, v = prepend(extra, k, v)
    if channels is not None:
        channels = channels[0].repeat(windows, 1, 1), channels[1].repeat(windows, 1, 1)
    width = v.shape[-1]
    q, k, v, scale = widen(q, k, v, channels, scale)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.flatten(0, 1)[None], dropout_p=drop_rate, scale=scale)
    y = y if channels is None else y[..., :width]
    return recomputed(lambda t: merge_heads(t.unflatten(1, (windows, heads)).flatten(0, 1)), y)


def window_bias(bias: Tensor, mask: Optional[Tensor], gate: Optional[Tensor], front: Tuple[int, int],
                dtype: torch.dtype) -> Tensor:
    """Bias of the windows that share one mask.

    Args:
        bias: Relative position bias (h, N, N).
        mask: Shift mask (N, N), or those of all windows (windows, N, N), or None.
        gate: See :func:`attend_windows`.
        front: Leading queries and keys without bias, (P, K + P).
        dtype: Of the result.

    Returns:
        (1, windows or B * windows, h, P + N, K + P + N).
    """
    if mask is not None and mask.dim() == 3:
        mask = mask[:, None]
    bias = bias if mask is None else bias + mask
    # In front of rows and columns: prompts and extra keys have no relative position, their bias is 0.
    bias = F.pad(bias, (front[1], 0, front[0], 0)) if any(front) else bias
    bias = bias if bias.dim() == 4 else bias[None]
    return (bias if gate is None else bias + gate).to(dtype)


def relative_position_bias(table: Tensor, index: Tensor) -> Tensor:
    """(entries, h) gathered by (N, N) -> (h, N, N), contiguous: on a GPU the fused kernels take no other bias, and what
    stands in for them forms float32 maps."""
    return table.t().index_select(1, index.reshape(-1)).unflatten(1, index.shape)
