# SPDX-License-Identifier: Apache-2.0
"""Which attention a GPU's fused kernels take, asked on any machine: what they refuse runs there as float32 products over
maps that are kept, in silence."""

from contextlib import contextmanager
from typing import Iterator, List, Optional
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor


def refusal(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor]) -> Optional[str]:
    """Why flash attention (without a mask) or the memory-efficient kernel and cuDNN's (with one) would refuse a call in
    16 bits, by torch's ``sdp_utils``; None where they take it."""
    if any(t.stride(-1) != 1 for t in (q, k, v)):
        return f'strides {[t.stride() for t in (q, k, v)]}'
    if not q.shape[:-2] == k.shape[:-2] == v.shape[:-2] or q.dim() != 4:
        return f'batch and heads {[tuple(t.shape) for t in (q, k, v)]}'
    if not q.shape[-1] == k.shape[-1] == v.shape[-1]:
        return f'widths {[t.shape[-1] for t in (q, k, v)]}'
    if mask is None:
        return None
    if mask.stride(-1) != 1 and mask.shape[-1] > 1:
        return f'strides {mask.stride()} of a bias of {tuple(mask.shape)}'
    if q.shape[-1] % 8:
        return f'width {q.shape[-1]} beside a bias'
    return None


@contextmanager
def fused_alone() -> Iterator[List[str]]:
    """Collects what would be refused of all that runs inside."""
    found: List[str] = []
    attention = F.scaled_dot_product_attention

    def spied(query: Tensor, key: Tensor, value: Tensor, attn_mask: Optional[Tensor] = None, **options: object) -> Tensor:
        found.extend(filter(None, [refusal(query, key, value, attn_mask)]))
        return attention(query, key, value, attn_mask=attn_mask, **options)

    with patch.object(torch.nn.functional, 'scaled_dot_product_attention', spied):
        yield found
