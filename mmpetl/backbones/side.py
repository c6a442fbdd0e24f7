# SPDX-License-Identifier: Apache-2.0
"""A frozen block as side methods (SynQT, VQT, LST) use it: queries that pass through, reading the image tokens only."""

from typing import Callable, Mapping, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sites import BlockSpec, as_given
from .attention import merge_heads, split_heads
from .cast import hold, normed, release


class SideBlock:
    """View of one sited block.

    Args:
        block: The specialised block of a ViT-type backbone.
        final_norm: The backbone's last norm, or None.
    """

    def __init__(self, block: nn.Module, final_norm: Optional[nn.Module]) -> None:
        self.block = block
        self.final_norm = final_norm

    @property
    def spec(self) -> BlockSpec:
        return self.block.spec

    def norm1(self, x: Tensor) -> Tensor:
        """The first norm, frozen: x (..., C) -> (..., C)."""
        return self.block.norm1(x)

    def attend_from(self, p: Tensor, read: Mapping[str, Tensor]) -> Tensor:
        """Frozen attention of queries p (B, P, C) over the tokens of ``read`` -> (B, P, C).

        With ``read['k']`` and ``read['v']`` (B, heads, N, head_dim) attention is the ordinary one. With ``read['u']``
        (B, N, C) alone keys and values are never formed: the key projection moves to the queries (its bias cancels in
        the softmax) and the value projection to the attended mean (the weights of a query sum to one).
        """
        attn, spec = self.block.attn, self.spec
        # By op and not through the attention's forward pass, which would ask with the image tokens.
        weight, bias = attn.read('q')
        q = split_heads(F.linear(normed(self.block, 'norm1', p), weight, bias), spec.heads)
        if 'k' in read:
            y = F.scaled_dot_product_attention(q, read['k'], read['v'], scale=spec.head_dim**-0.5)
        else:
            q = q * spec.head_dim**-0.5
            # Heads and queries share one axis in the products with u, so that no product repeats u or a weight.
            u, per_head = read['u'], (spec.heads, spec.head_dim, spec.dim)
            w_v, b_v = attn.read('v')
            # (W_k u)^T q = u^T (W_k^T q): W_k moves to the few queries.
            q = torch.einsum('bhpd,hdc->bhpc', q, attn.read('k')[0].view(per_head))
            logits = q.flatten(1, 2) @ u.transpose(-2, -1)
            with as_given(logits):
                weights = torch.softmax(logits, -1)
            y = torch.einsum('bhpc,hdc->bhpd', (weights @ u).unflatten(1, (spec.heads, -1)), w_v.view(per_head))
            if b_v is not None:
                y = y + b_v.view(spec.heads, 1, spec.head_dim)
        return self.block.drop_path_of('attn')(self.block.attention_output(merge_heads(y)))

    def ffn_out(self, p: Tensor) -> Tensor:
        """Frozen feed-forward branch of p (B, P, C), its norm included -> (B, P, C)."""
        return self.block.drop_path_of('ffn')(self.block.feed_forward(normed(self.block, 'norm2', p)))

    def through(self, p: Tensor, read: Mapping[str, Tensor], averaged: bool = False,
                join: Callable[[Tensor, Tensor], Tensor] = torch.add) -> Tuple[Tensor, Tensor, Tensor]:
        """Queries p (B, P, C) through the block.

        Args:
            p: Queries.
            read: See :meth:`attend_from`.
            averaged: Whether of the feed-forward branch the mean over the queries (B, 1, C) is enough; its second
                product, which is linear, then reads the mean of the first one's activations.
            join: (p, h) -> p + h, for a sum with a backward pass of its own.

        Returns:
            r = p + h with the attention's output h, h, and the feed-forward branch of r or its mean, (B, P, C) each,
            the mean (B, 1, C).
        """
        made = hold(self.block, p, norms=('norm1', 'norm2'))
        try:
            h = self.attend_from(p, read).to(p.dtype)  # LayerScale makes it float32 again
            r = join(p, h)
            if not averaged or torch.compiler.is_compiling():
                hh, done = self.ffn_out(r).to(p.dtype), False
            else:
                with self.block.tap.averages(self.block) as done:
                    hh = self.ffn_out(r).to(p.dtype)
            return r, h, hh.mean(1, keepdim=True) if averaged and not done else hh
        finally:
            if made:
                release(self.block)
