# SPDX-License-Identifier: Apache-2.0
"""What a method may know about one block, and the names of all places where it may act."""

from dataclasses import dataclass
from typing import Optional, Tuple

#: Linear ops that every block has.
OPS = ('q', 'k', 'v', 'proj', 'fc1', 'fc2')
#: All linear ops; 'gate' is the second first product of a gated feed-forward network, act(gate) * fc1.
ALL_OPS = (*OPS, 'gate')
NORMS = ('embed', 'norm1', 'norm2', 'final')
SUBS = ('attn', 'ffn')
POINTS = ('qkv', 'linear', 'input', 'norm', 'branch', 'kv', 'channels', 'prompts', 'stream', 'entry', 'images', 'pool',
          'side')
#: Those of backbones for images that read clips.
CLIP_POINTS = frozenset(('entry', 'images', 'pool'))


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
        grid: Token grid for which the backbone was built, (H, W) for images and (T, H, W) for videos; empty where it
            is not fixed. The grid of the input at hand is :meth:`Method.grid`.
        window: Attention window, same rank as ``grid``; None for global attention.
        patch: Pixels per token at the patch embedding, (h, w) or (t, h, w). Prompt initialisers need it.
        key_bias: Whether the base's key projection has a bias (VideoMAE has none).
        ops: Linear ops of the block.
        frames: Frames of the clips for which a backbone for images was built, each an image in the batch; 0: no clips.
        post_norm: Whether the norms stand at the end of the branches, behind the sublayers and not before them.
        dim_in: Width of the stream at the block's entry where its attention widens it; 0: C.
        pools: Whether the block's attention makes the token grid smaller.
        pools_keys: Whether keys and values are pooled behind their projections.
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
    ops: Tuple[str, ...] = OPS
    frames: int = 0
    post_norm: bool = False
    dim_in: int = 0
    pools: bool = False
    pools_keys: bool = False

    @property
    def entry_dim(self) -> int:
        """Width of the stream at the block's entry."""
        return self.dim_in or self.dim

    @property
    def head_dim(self) -> int:
        """Width of one attention head, C / heads."""
        return self.dim // self.heads

    def op_dims(self, op: str) -> Tuple[int, int]:
        """(Cin, Cout) of one linear op or norm of this block."""
        if op in ('q', 'k', 'v'):
            return self.entry_dim, self.dim
        if op == 'norm1':
            return self.entry_dim, self.entry_dim
        if op in ('fc1', 'gate'):
            return self.dim, self.ffn_dim
        if op == 'fc2':
            return self.ffn_dim, self.dim
        return self.dim, self.dim
