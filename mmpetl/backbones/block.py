"""The sited block: one pre-norm transformer block with the points of the waist in reading order.

Each backbone's block is specialised in place (``module.__class__ = SitedX``): same parameters, same state-dict keys, same object; only
``forward`` is restated. A backbone supplies its two norms, its attention and its feed-forward network.
"""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..sites import BlockSpec, Tap


def enter_prompts(tap: Tap, x: Tensor, extra_tokens: int) -> Tuple[Tensor, Optional[Tensor]]:
    """Let a block's prompts in.

    Args:
        tap: The block's tap.
        x: Token stream (B, extra_tokens + prompts_in + N, C).
        extra_tokens: Tokens that stay in front of the prompts (class token).

    Returns:
        The stream, and the prompts (1, P, C) when they act as keys and values only, else None.
    """
    prompts = tap.prompts()
    if prompts is None:
        return x, None
    prompts = prompts.to(x.dtype)
    if tap.prompts_in:
        x = torch.cat([x[:, :extra_tokens], x[:, extra_tokens + tap.prompts_in:]], 1)
    if not tap.prompts_read:
        return x, prompts
    return torch.cat([x[:, :extra_tokens], prompts.expand(len(x), -1, -1), x[:, extra_tokens:]], 1), None


class SitedBlock:
    """Mixin for blocks; sets the order of norm, attention, feed-forward and points. Abstract: see the four members below."""

    tap: Tap
    spec: BlockSpec
    with_cp: bool
    norm1: nn.Module
    norm2: nn.Module
    attn: nn.Module

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """Normed input -> attention output before drop-path; ``prompts``: normed prompts acting as keys and values only."""
        raise NotImplementedError

    def feed_forward(self, h: Tensor) -> Tensor:
        """Normed input -> feed-forward output before drop-path."""
        raise NotImplementedError

    def drop_path_of(self, sub: str) -> nn.Module:
        """The drop-path module of 'attn' or 'ffn'."""
        raise NotImplementedError

    def run(self, x: Tensor, *context: Any) -> Tensor:
        """(B, N, C) or (B, T, H, W, C) -> same shape. ``context`` is handed to :meth:`attention`."""
        if self.tap.recorder is not None:
            return self._record(x, *context)
        if self.with_cp and torch.is_grad_enabled():
            # Reentrant checkpointing gives no gradient at all when the block's input needs none, as in a frozen trunk.
            return checkpoint(self._run, x, *context, use_reentrant=False)
        return self._run(x, *context)

    def _run(self, x: Tensor, *context: Any) -> Tensor:
        tap = self.tap
        x, prompts = enter_prompts(tap, x, self.spec.extra_tokens)
        h = tap.norm('norm1', self.norm1(x))
        if prompts is not None:
            prompts = tap.norm('norm1', self.norm1(prompts))
        x = self._residual('attn', x, h, self.attention(h, prompts, *context))
        h = tap.norm('norm2', self.norm2(x))
        x = self._residual('ffn', x, h, self.feed_forward(h))
        if tap.prompts_dropped:
            first = self.spec.extra_tokens
            x = torch.cat([x[:, :first], x[:, first + tap.prompts_dropped:]], 1)
        return x

    def _residual(self, sub: str, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        y = self.tap.branch(sub, x, h, y, inside=True)
        y = self.drop_path_of(sub)(y)
        return x + self.tap.branch(sub, x, h, y, inside=False)

    def _record(self, x: Tensor, *context: Any) -> Tensor:
        """Store the frozen activations that side methods read; the last block's own update is skipped unless it is read."""
        record = self.tap.recorder
        assert record is not None
        if 'x' in record:
            record['x'] = x
        u = self.norm1(x)
        if 'u' in record:
            record['u'] = u
        if record['skip']:
            if 'k' in record:
                record['k'], record['v'] = self.attn.keys_values(u)
            return x
        x = x + self.drop_path_of('attn')(self.attention(u, None, *context))
        x = x + self.drop_path_of('ffn')(self.feed_forward(self.norm2(x)))
        if 'out' in record:
            record['out'] = x
        return x


def feed_forward(tap: Tap, fc1: nn.Linear, act: nn.Module, drop1: nn.Module, fc2: nn.Linear, drop2: nn.Module, h: Tensor) -> Tensor:
    """drop2(T(fc2(drop1(act(T(fc1(h))))))) with the tap T; (..., C) -> (..., C)."""
    mid = drop1(act(tap.linear('fc1', h, fc1(h))))
    return drop2(tap.linear('fc2', mid, fc2(mid)))
