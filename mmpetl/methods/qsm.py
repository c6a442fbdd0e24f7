# SPDX-License-Identifier: Apache-2.0
"""The query synthesis module of SynQT: queries talk to each other before they read the frozen transformer.

Zhang et al., https://arxiv.org/abs/2407.06964. Linears and LayerNorms keep torch's default initialisation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBottleneck(nn.Module):
    """z + dropout(fc2(dropout(gelu(fc1(z))))); (..., C) -> (..., C)."""

    def __init__(self, dim: int, mid_dims: int, drop_rate: float = 0.) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, mid_dims)
        self.fc2 = nn.Linear(mid_dims, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, z: Tensor) -> Tensor:
        """z (..., C) -> (..., C)."""
        return z + self.drop(self.fc2(self.drop(F.gelu(self.fc1(z)))))


class QueryAttention(nn.Module):
    """Self-attention among the queries with one head of width C and projections "identity + bottleneck"; (B, P, C) ->
    (B, P, C)."""

    def __init__(self, dim: int, mid_dims: int, drop_rate: float) -> None:
        super().__init__()
        self.q_norm, self.kv_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q_proj, self.k_proj, self.v_proj, self.proj = (ResidualBottleneck(dim, mid_dims) for _ in range(4))
        self.drop = nn.Dropout(drop_rate)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, P, C) -> (B, P, C)."""
        # Two norms of the same input: queries and context are scaled apart.
        query, context = self.q_norm(z), self.kv_norm(z)
        # One head as wide as the stream; P is small, so the P x P map is written out.
        logits = self.q_proj(query) @ self.k_proj(context).transpose(-2, -1) * z.shape[-1]**-0.5
        return self.drop(self.proj(self.drop(logits.softmax(-1)) @ self.v_proj(context)))


class QSM(nn.Module):
    """Query synthesis module: z + s_a * attention(LN(z)), then z + s_f * bottleneck(LN(z)); (B, P, C) -> (B, P, C)."""

    def __init__(self, dim: int, mid_dims: int, ffn_dims: int, drop_rate: float, attn_scale: float,
                 ffn_scale: float) -> None:
        super().__init__()
        # Kept, because reset_parameters must be able to return to them at any time.
        self.start = attn_scale, ffn_scale
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = QueryAttention(dim, mid_dims, drop_rate)
        self.mlp = ResidualBottleneck(dim, ffn_dims, drop_rate)
        self.attn_scale, self.ffn_scale = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The two factors back to their start."""
        nn.init.constant_(self.attn_scale, self.start[0])
        nn.init.constant_(self.ffn_scale, self.start[1])

    def forward(self, z: Tensor) -> Tensor:
        """z (B, P, C) -> (B, P, C)."""
        z = z + self.attn_scale * self.attn(self.norm1(z))
        return z + self.ffn_scale * self.mlp(self.norm2(z))
