# SPDX-License-Identifier: Apache-2.0
"""VQT: visual query tuning, free query tokens that read a frozen transformer.

Tu et al., "Visual Query Tuning: Towards Effective Usage of Intermediate Representations for Parameter and Memory
Efficient Transfer Learning", https://arxiv.org/abs/2212.03220. In every block i, P query tokens attend to the image
tokens and pass the frozen feed-forward network; the image tokens never see them::

    p = dropout(Q_i);   h = attention(p -> x_i);   q_i = p + h + ffn(p + h)
    feature = [ class token after the final norm ; q_0 ; ... ; q_{L-1} ],   each of the L + 1 groups scaled to length 1

Where a backbone has no class token (VideoMAE), the mean of its tokens after the final norm stands in its place, as in
its own output.
"""

import math
from typing import Any, Callable, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..registry import METHODS
from ..sites import BlockSpec, Layers, Method, positive

# 'u' alone lets the projections of keys and values be absorbed into the queries, see
# SideBlock.attend_from.
CONTEXTS = {'kv': ('k', 'v'), 'absorb': ('u', )}


def context_reads(context: str, owner: str) -> Tuple[str, ...]:
    """What queries read of a block: keys and values ('kv'), or the normed tokens ('absorb', half the bytes, more work
    per query).

    Raises:
        ValueError: If ``context`` is neither.
    """
    if context not in CONTEXTS:
        raise ValueError(f"{owner}: context must be 'kv' or 'absorb', got {context!r}")
    return CONTEXTS[context]


class MemoryForm:
    """What a side method reads of the blocks and whether it recomputes: as asked, or as the backbone's ``memory`` says.

    Args:
        context: 'kv', 'absorb' or None.
        checkpoint: Whether query paths are recomputed, or None.
        owner: The method's name.

    Raises:
        ValueError: If ``context`` is unknown.
    """

    def __init__(self, context: Optional[str], checkpoint: Optional[bool], owner: str) -> None:
        self.context, self.checkpoint = context, checkpoint
        self.reads = context_reads(context or 'kv', owner)
        self.recomputes = bool(checkpoint)

    def settle(self, blocks: Sequence[Any]) -> None:
        """Follow the memory setting of a backbone's blocks."""
        light = any(getattr(block, 'recompute_level', 0) for block in blocks)
        if self.context is None:
            self.reads = CONTEXTS['absorb' if light else 'kv']
        if self.checkpoint is None:
            self.recomputes = light


def one_width(specs: Sequence[BlockSpec], owner: str) -> int:
    """The common width C of all blocks.

    Raises:
        ValueError: If blocks differ in width, as in a hierarchical backbone.
    """
    widths = sorted({spec.dim for spec in specs})
    if len(widths) > 1:
        raise ValueError(f'{owner}: all blocks must have one width, this backbone has {", ".join(map(str, widths))}')
    return widths[0]


def recompute(enabled: bool, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, tensors of any shape (...), whose activations are computed again in the backward pass when
    ``enabled``."""
    # Checkpointing without gradients would only cost a warning and time.
    if enabled and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)


def batch_size(read: Mapping[str, Tensor]) -> int:
    """Images B in the batch that was read, tensors (B, ...)."""
    return len(next(iter(read.values())))


@METHODS.register_module()
class VQT(Method):
    """Visual query tuning; the feature is C * (1 + P * adapted blocks) wide (see :attr:`out_dims`).

    Args:
        specs: Blocks of the backbone.
        num_tokens: Query tokens P per block.
        drop_rate: Dropout on the query tokens.
        normalize: Scale every group to length 1.
        context: 'absorb' reads norm1(x), 'kv' reads keys and values; same outputs, see :func:`context_reads`.
        checkpoint: Recompute each block's query path in the backward pass. None: not with ``memory='standard'``.
        layers: Blocks that are read.

    Raises:
        ValueError: If ``num_tokens`` < 1, ``context`` is unknown, or the blocks differ in width.
    """

    costs_only = ('context', 'checkpoint')

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 num_tokens: int = 1,
                 drop_rate: float = 0.1,
                 normalize: bool = True,
                 context: str = 'absorb',
                 checkpoint: Optional[bool] = None,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        dim = one_width(specs, 'VQT')
        # 'out' of the last block holds the class token, or the tokens whose mean stands for it.
        self.memory = MemoryForm(context, checkpoint, 'VQT')
        self.num_tokens = positive(num_tokens, 'num_tokens', 'VQT')
        self.normalize = normalize
        self.queries = nn.Parameter(torch.empty(len(self.layers), num_tokens, dim))
        self.drop = nn.Dropout(drop_rate)
        self.reset_parameters()

    @property
    def out_dims(self) -> int:
        """Width of the feature."""
        return self.specs[-1].dim * (1 + self.num_tokens * len(self.layers))

    def reset_parameters(self) -> None:
        """Uniform with VPT's bound sqrt(6 / (3 * pixels per token + C))."""
        bound = math.sqrt(6 / (3 * math.prod(self.specs[0].patch) + self.specs[0].dim))
        nn.init.uniform_(self.queries, -bound, bound)

    @property
    def side_reads(self) -> Tuple[str, ...]:  # type: ignore[override]
        """What is read of every block; of the last one also the output."""
        return (*self.memory.reads, 'out')

    def bind(self, blocks: Sequence[Any]) -> None:
        super().bind(blocks)
        self.memory.settle(blocks)

    def _query(self, block: Any, read: Mapping[str, Tensor], query: Tensor) -> Tensor:
        """(P, C) -> (B, P * C), the outputs of one block's queries."""
        # Expanded before it is dropped: a mask of its own for every sample.
        p = self.drop(query.expand(batch_size(read), -1, -1))
        r, _, hh = block.through(p, read)
        return (r + hh).flatten(1)

    def on_side(self, reads: Sequence[Mapping[str, Tensor]], blocks: Sequence[Any]) -> Tensor:
        """What every block gave to read: k and v (B, heads, N, head_dim), or u (B, N, C), and the last block's ``out``
        (B, N, C) -> feature (B, C * (1 + P * blocks))."""
        # Norm of one token only; a LayerNorm treats every token alone.
        norm, out = blocks[-1].final_norm, reads[-1]['out']
        # mean, then norm: the order of VideoMAE's own output
        token = out[:, 0] if self.specs[-1].extra_tokens else out.mean(1)
        token = token if norm is None else norm(token)
        found = torch.stack([
            recompute(self.memory.recomputes, self._query, blocks[i], reads[i], q)
            for i, q in zip(self.layers, self.half(self.queries).unbind())
        ], 1)
        if self.normalize:  # groups of one width at once
            token, found = F.normalize(token, dim=1), F.normalize(found, dim=2)
        return torch.cat([token, found.flatten(1)], 1)
