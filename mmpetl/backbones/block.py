# SPDX-License-Identifier: Apache-2.0
"""The sited block: one pre-norm transformer block with the points of the waist in reading order.

Each backbone's block is specialised in place (``module.__class__ = SitedX``): same parameters, same state-dict keys,
same object; only ``forward`` is restated. A backbone supplies its two norms, its attention and its feed-forward
network.
"""

from functools import partial
from typing import Any, Callable, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..recompute import ELEMENTWISE, LARGE_PRODUCT, Recomputing, is_recomputed, recomputed
from ..sites import BlockSpec, Tap, autocast_dtype, forked
from .attention import attend
from .cast import apply_linear, held, hold, normed, release


def enter_prompts(tap: Tap, x: Tensor, extra_tokens: int) -> Tuple[Tensor, Optional[Tensor]]:
    """Let a block's prompts in.

    Args:
        tap: The block's tap.
        x: Token stream (B, extra_tokens + prompts_in + N, C).
        extra_tokens: Tokens that stay in front of the prompts (class token).

    Returns:
        The stream, and the prompts (1 or B, P, C) when they act as keys and values only, else None.
    """
    prompts = tap.prompts(len(x))
    if prompts is None:
        return x, None
    if tap.prompts_in:
        # What the block before made of its prompts is dropped: these take their place.
        x = torch.cat([x[:, :extra_tokens], x[:, extra_tokens + tap.prompts_in:]], 1)
    # Nobody reads what this block makes of them, so they need no queries and no feed-forward network:
    # same outputs, less work.
    if not tap.prompts_read:
        return x, prompts if autocast_dtype(prompts) else prompts.to(x.dtype)
    # Under autocast the stream may be in another precision than the learned tokens.
    prompts = prompts.to(x.dtype)
    return torch.cat([x[:, :extra_tokens], prompts.expand(len(x), -1, -1), x[:, extra_tokens:]], 1), None


def once_in_half(h: Tensor) -> Tensor:
    """Under autocast, an input (..., C) in the precision in which all products read it: cast once, not once per
    reader."""
    half = autocast_dtype(h)
    return recomputed(Tensor.to, h, half) if half and h.dtype is torch.float32 else h


#: Token grid and frames per clip of the input at hand.
Where = Tuple[Tuple[int, ...], int]
#: Weight (Cout, Cin) and bias (Cout) of a linear layer.
Linear = Tuple[Tensor, Optional[Tensor]]
#: Ops of attention; the others are the feed-forward network's.
_ATTENTION_OPS = ('q', 'k', 'v', 'proj')


class SitedBlock:
    """Mixin for blocks; sets the order of norm, attention, feed-forward and points. Abstract: see the members below."""

    tap: Tap
    spec: BlockSpec
    with_cp: bool
    #: What is computed again in the backward pass, see :mod:`mmpetl.recompute`: the setting, and what never pays to
    #: keep.
    recompute_level: int
    least_level = 0
    #: Whether a key bias adds one constant to all logits of a query, so that it may be dropped.
    key_bias_cancels = True
    norm1: nn.Module
    norm2: nn.Module
    attn: nn.Module
    mlp: Any

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """Normed input h (B, N, C) -> attention output (B, N, C) before drop-path; ``prompts`` (1 or B, P, C): normed
        prompts acting as keys and values only."""
        raise NotImplementedError

    def frozen_attention(self, x: Tensor, change: Optional[Callable[[Tensor], Tensor]] = None) -> Tensor:
        """Norm and attention of x (B, N, C) by frozen weights alone, no method acting -> (B, N, C), before drop-path;
        for methods that attend along another axis. ``change`` stands between the two, (B, N, C) -> (B, N, C)."""
        h = once_in_half(recomputed(self.norm1, x))
        q, k, v = self.attn.fused(h if change is None else change(h)).chunk(3, -1)
        return self.attention_output(attend(q, k, v, self.spec.heads))

    def attention_output(self, y: Tensor) -> Tensor:
        """What attention gathered (B, N, C) -> attention output (B, N, C) before drop-path, by frozen weights alone;
        for side methods."""
        return apply_linear(self.attn.proj, self.tap, 'proj', y)

    def feed_forward(self, h: Tensor) -> Tensor:
        """Normed input h (..., C) -> feed-forward output (..., C) before drop-path."""
        raise NotImplementedError

    @property
    def projections(self) -> Any:
        """The module that holds q, k, v and proj."""
        return self.attn

    def op_parameters(self, op: str) -> Linear:
        """Weight (Cout, Cin) and bias (Cout) of one op, as views of the parameters."""
        return self.projections.op_parameters(op) if op in _ATTENTION_OPS else self.ffn_parameters(op)

    def ffn_parameters(self, op: str) -> Linear:
        """Weight (Cout, Cin) and bias (Cout) of fc1, fc2 or gate, as views of the parameters."""
        return of_linear(getattr(self.mlp, op))

    def grid_of(self, x: Tensor, *context: Any) -> Tuple[int, ...]:
        """Token grid of the stream x at the block's entry, (H, W) or (T, H, W)."""
        return self.tap.run_time.grid

    def drop_path_of(self, sub: str) -> nn.Module:
        """The drop-path module of 'attn' or 'ffn'."""
        raise NotImplementedError

    def run(self, x: Tensor, *context: Any) -> Tensor:
        """(B, N, C) or (B, T, H, W, C) -> same shape. ``context`` is handed to :meth:`attention`."""
        if self.tap.recorder is not None:
            made = hold(self, x)
            try:
                return self._record(x, *context)
            finally:
                # Queries that pass through the block next read the same copies.
                if made and not self.tap.recorder['keep']:
                    release(self)
        # Bound here and not read in the backward pass, when another input may have come in between.
        where = self.grid_of(x, *context), self.tap.run_time.frames
        if self.with_cp and torch.is_grad_enabled():
            # Reentrant checkpointing gives no gradient at all when the block's input needs none, as in a frozen base.
            return checkpoint(self._run, x, where, *context, use_reentrant=False)
        # The user's setting, what never pays to keep in this kind of block, and what its methods ask for.
        level = max(self.recompute_level, self.least_level, ELEMENTWISE if self.tap.recomputes else 0)
        if level and not torch.compiler.is_compiling():
            with Recomputing(level):
                return self._run(x, where, *context)
        return self._run(x, where, *context)

    def _run(self, x: Tensor, where: Where, *context: Any) -> Tensor:
        # Prompts that are keys and values only pass this norm alone, in autocast's precision.
        if not hold(self, x, ('norm1', ) if self.tap.num_prompts and not self.tap.prompts_read else ()):
            return self._steps(x, where, *context)
        try:
            return self._steps(x, where, *context)
        finally:
            release(self)

    def _steps(self, x: Tensor, where: Where, *context: Any) -> Tensor:
        tap = self.tap
        # Also in a recomputed pass: checkpointing calls this with the grid of that pass.
        tap.grid, tap.frames = where
        x = self.enter(tap.stream(x), *context)
        x, prompts = enter_prompts(tap, x, self.spec.extra_tokens)
        h = once_in_half(tap.norm('norm1', recomputed(self.norm1, x)))
        if prompts is not None:
            # As if they stood in the stream: the same norm, and what methods do to it.
            prompts = tap.norm('norm1', normed(self, 'norm1', prompts))
        y = self.attention(h, prompts, *context)
        # Attention was the last to mix tokens; from here on only those that are read go on.
        if tap.tokens_read is not None:
            x, h = x[:, :tap.tokens_read], h[:, :tap.tokens_read]
        x = self.between(self._residual('attn', self.carried(x, h), h, y), *context)
        h = once_in_half(tap.norm('norm2', recomputed(self.norm2, x)))
        return self._left(self._residual('ffn', x, h, self.feed_forward(h)))

    def enter(self, x: Tensor, *context: Any) -> Tensor:
        """What upstream does to the stream before the first norm, (B, N, C) -> (B, N, C)."""
        return x

    def between(self, x: Tensor, *context: Any) -> Tensor:
        """What upstream does to the stream between attention and the second norm, (B, N, C) -> (B, N, C)."""
        return x

    def carried(self, x: Tensor, h: Tensor) -> Tensor:
        """What attention is added to: the stream x (B, N, C), or what upstream makes of it, or of its norm h, where
        attention gives fewer or wider tokens than it reads."""
        return x

    def _left(self, x: Tensor) -> Tensor:
        """Last block: what follows expects class token and grid tokens alone, x (B, N, C) -> (B, N', C)."""
        tap = self.tap
        if tap.prompts_dropped:
            first = self.spec.extra_tokens
            x = torch.cat([x[:, :first], x[:, first + tap.prompts_dropped:]], 1)
        if tap.grid_dropped:
            x = x[:, :self.spec.extra_tokens + tap.prompts_pooled]
        return x

    def _residual(self, sub: str, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        x, seen = forked(x) if self.tap.branches(sub) else (x, x)
        # A method inside is dropped with the sublayer, as if it were part of it; one outside has its own
        # say.
        y = self.tap.branch(sub, seen, h, y, inside=True)
        y = self.drop_path_of(sub)(y)
        y = self.tap.branch(sub, seen, h, y, inside=False)
        if x.requires_grad and is_recomputed(y):
            return recomputed(torch.add, x, y)  # x is kept by its norm, and y by nobody
        return x + y

    def _record(self, x: Tensor, *context: Any) -> Tensor:
        """Store the frozen activations that side methods read; the last block's own update is skipped unless it is
        read."""
        record = self.tap.recorder
        assert record is not None
        if 'x' in record:
            record['x'] = x
        u = self.norm1(x)
        if 'u' in record:
            record['u'] = u
        u = once_in_half(u)
        # Keys and values are all that is read of this block, and none of its own work is needed for them.
        if record['skip']:
            if 'k' in record:
                record['k'], record['v'] = self.attn.keys_values(u)
            return x
        x = x + self.drop_path_of('attn')(self.attention(u, None, *context))
        x = x + self.drop_path_of('ffn')(self.feed_forward(self.norm2(x)))
        if 'out' in record:
            record['out'] = x
        return x


class PostNormBlock(SitedBlock):
    """Mixin for blocks whose norms stand at the end of the branches: x + norm1(attention(x)), x + norm2(ffn(x)).

    Points keep their names: 'norm1' and 'norm2' act on the outputs of these norms, ``on_branch`` behind them, and what
    a method gets as a sublayer's input is the stream, which no norm stands before.
    """

    def _steps(self, x: Tensor, where: Where, *context: Any) -> Tensor:
        tap = self.tap
        tap.grid, tap.frames = where
        x, prompts = enter_prompts(tap, tap.stream(x), self.spec.extra_tokens)
        h = once_in_half(x)
        y = recomputed(self.norm1, self.attention(h, prompts, *context))
        x = self._residual('attn', x, h, tap.norm('norm1', y))
        h = once_in_half(x)
        y = recomputed(self.norm2, self.feed_forward(h))
        x = self._residual('ffn', x, h, tap.norm('norm2', y))
        return self._left(self.leave(x))

    def leave(self, x: Tensor) -> Tensor:
        """What upstream does to the stream behind both branches, (B, N, C) -> (B, N, C)."""
        return x


def of_linear(linear: Any) -> Linear:
    """Weight (Cout, Cin) and bias (Cout) of a linear layer."""
    return linear.weight, linear.bias


def of_ffn(ffn: Any, op: str) -> Linear:
    """Weight (Cout, Cin) and bias (Cout) of fc1 or fc2 of mmcv's ``FFN``."""
    return of_linear(ffn.layers[0][0] if op == 'fc1' else ffn.layers[1])


def of_swiglu(ffn: Any, op: str) -> Linear:
    """Weight (Cout, Cin) and bias (Cout) of gate, fc1 or fc2 of mmpretrain's ``SwiGLUFFN``, as views of the parameters.
    """
    if op == 'fc2':
        return of_linear(ffn.w3)
    # w12 is both layers on top of each other, gate first.
    half, (weight, bias) = ('gate', 'fc1').index(op), of_linear(ffn.w12)
    return weight.chunk(2)[half], None if bias is None else bias.chunk(2)[half]


def feed_forward(tap: Tap, fc1: nn.Linear, act: nn.Module, drop1: nn.Module, fc2: nn.Linear, drop2: nn.Module,
                 h: Tensor) -> Tensor:
    """drop2(T(fc2(drop1(act(T(fc1(h))))))) with the tap T; (..., C) -> (..., C)."""
    h = tap.input('fc1', h)
    y = recomputed(partial(apply_linear, fc1, tap, 'fc1'), h, level=LARGE_PRODUCT)
    mid = drop1(recomputed(act, tap.linear('fc1', h, y)))
    mid = tap.input('fc2', mid)
    return drop2(tap.linear('fc2', mid, apply_linear(fc2, tap, 'fc2', mid)))


def gated_feed_forward(tap: Tap, gate: Linear, fc1: Linear, act: Callable[[Tensor], Tensor], inner: nn.Module,
                       fc2: nn.Linear, h: Tensor) -> Tensor:
    """T(fc2(inner(act(T(gate(h))) * T(fc1(h))))) with the tap T; (..., C) -> (..., C).

    Args:
        tap: The block's tap.
        gate, fc1: Weight (F, C) and bias (F) of the two first products.
        act: Activation of the gate.
        inner: Norm or dropout of the product (..., F).
        fc2: Second linear, F -> C.
        h: Normed input (..., C).
    """
    # Copies in half precision where a block holds them.
    gate, fc1 = held(tap, 'gate') or gate, held(tap, 'fc1') or fc1
    # Apart: a method may change what one of the two reads.
    h_gate, h = tap.input('gate', h), tap.input('fc1', h)
    opened = recomputed(act, tap.linear('gate', h_gate, recomputed(F.linear, h_gate, *gate, level=LARGE_PRODUCT)))
    mid = recomputed(torch.mul, opened, tap.linear('fc1', h, recomputed(F.linear, h, *fc1, level=LARGE_PRODUCT)))
    mid = tap.input('fc2', inner(mid))
    return tap.linear('fc2', mid, apply_linear(fc2, tap, 'fc2', mid))
