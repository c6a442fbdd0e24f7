# SPDX-License-Identifier: Apache-2.0
"""The textbook forms of the side methods SynQT, VQT, LST and Res-Tuning-Bypass: keys and values formed and kept,
explicit softmax, nothing recomputed."""

from typing import List, Tuple

import torch
import torch.nn.functional as F
from benchmark_plain import PlainViT, layer_norm
from torch import Tensor, nn


def bottleneck(m: nn.Module, z: Tensor) -> Tensor:
    """z + dropout(fc2(dropout(gelu(fc1(z))))), (..., C) -> (..., C)."""
    return z + m.drop(m.fc2(m.drop(F.gelu(m.fc1(z)))))


def qsm(m: nn.Module, z: Tensor) -> Tensor:
    """SynQT's query synthesis module, (B, P, C) -> (B, P, C)."""
    a, u = m.attn, m.norm1(z)
    query, context = a.q_norm(u), a.kv_norm(u)
    logits = bottleneck(a.q_proj, query) @ bottleneck(a.k_proj, context).transpose(-2, -1) * z.shape[-1]**-0.5
    z = z + m.attn_scale * a.drop(bottleneck(a.proj, a.drop(logits.softmax(-1)) @ bottleneck(a.v_proj, context)))
    return z + m.ffn_scale * bottleneck(m.mlp, m.norm2(z))


class PlainSide(PlainViT):
    """ViT, CLIP or VideoMAE whose feature is that of a side method; (B, 3, [T,] H, W) -> (B, C').

    Keys and values are those that the frozen network computed for itself; its last block runs in full. The small
    trainable modules (bottlenecks, query attention, gates) are written out beside it.
    """

    def forward(self, x: Tensor) -> Tensor:
        method = next(iter(self.model.petl.values()))
        self.frozen: List[Tuple[Tensor, Tensor]] = []
        try:
            return getattr(self, type(method).__name__.lower())(method, self.streams(x))
        finally:
            self.frozen = []

    @torch.no_grad()
    def streams(self, x: Tensor) -> List[Tensor]:
        """Input of every block, then the output of the last; (B, N, C) each, frozen."""
        found = [self.embed(x)]
        for i in range(len(self.blocks)):
            found.append(self.block(i, found[-1]))
        return found

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            self.frozen.append((k.contiguous(), v.contiguous()))
        return super().attend(q, k, v)

    def final_norm(self) -> nn.Module:
        """The backbone's last norm."""
        if not self.video:
            return self.model.ln1
        return self.model.norm if self.model.fc_norm is None else self.model.fc_norm

    def read(self, i: int, p: Tensor) -> Tuple[Tensor, Tensor]:
        """Queries p (B, P, C) through frozen block i, with the keys and values of its tokens -> outputs of its two
        sublayers."""
        block = self.blocks[i]
        weight, bias = block.attn.qkv.weight.chunk(
            3)[0], block.attn.q_bias if self.video else block.attn.qkv.bias.chunk(3)[0]
        q = self.heads(i, F.linear(block.norm1(p), weight, bias))
        h = self.output(i, self.attend(q, *self.frozen[i]))
        return h, self.feed_forward(i, block.norm2(p + h))

    def synqt(self, m: nn.Module, streams: List[Tensor]) -> Tensor:
        """SynQT, see mmpetl/methods/synqt.py for the formulas."""
        q_means: List[Tensor] = []
        h_means, hh_means = [], []
        for i, query in zip(m.layers, m.queries):
            p = query.expand(len(streams[i]), -1, -1)
            if q_means:
                p = p + m.feat_scale * q_means[-1]
            p = m.drop(qsm(m.blocks[str(i)]['qsm'], bottleneck(m.blocks[str(i)]['adapter'], p)))
            h, hh = self.read(i, p)
            for found, t in ((q_means, p + h + hh), (h_means, h), (hh_means, hh)):
                found.append(t.mean(1, keepdim=True))
        rows = torch.cat([q_means[-1], *q_means, *h_means, *hh_means], 1)
        rows = rows + bottleneck(m.row_adapter, m.row_norm(rows))
        if self.training and m.row_drop_rate:
            keep = 1 - m.row_drop_rate
            kept = rows.new_empty(len(rows), rows.shape[1] - 1, 1).bernoulli_(keep) / keep
            rows = torch.cat([rows[:, :1], rows[:, 1:] * kept], 1)
        gates = torch.tanh(m.combine.drop(F.gelu(m.combine.gate(rows[:, 0]))))
        weights = torch.cat([torch.ones_like(gates[:, :1]), gates], 1)
        norm, final = m.head_norm, self.final_norm()
        weight, bias = final.weight + norm.weight_offset, final.bias + norm.bias_offset
        return F.layer_norm((weights[..., None] * rows).mean(1), rows.shape[-1:], weight, bias, norm.eps)

    def vqt(self, m: nn.Module, streams: List[Tensor]) -> Tensor:
        """VQT: groups of length 1."""
        last = streams[-1].mean(1) if self.video else streams[-1][:, 0]
        groups = [layer_norm(self.final_norm(), last)]
        for i, query in zip(m.layers, m.queries):
            p = m.drop(query.expand(len(streams[i]), -1, -1))
            h, hh = self.read(i, p)
            groups.append((p + h + hh).flatten(1))
        return torch.cat([F.normalize(g, dim=1) if m.normalize else g for g in groups], 1)

    def lst(self, m: nn.Module, streams: List[Tensor]) -> Tensor:
        """LST: a narrow transformer that mixes in the outputs of the blocks."""
        y = m.stem(streams[0])
        for i, alpha in zip(m.layers, m.gates):
            gate, rung = torch.sigmoid(alpha / m.temperature), m.rungs[str(i)]
            y = gate * y + (1 - gate) * m.downs[str(i)](streams[i + 1])
            q, k, v = (t.unflatten(-1, (rung.heads, -1)).transpose(1, 2) for t in rung.qkv(rung.norm1(y)).chunk(3, -1))
            y = y + rung.proj(self.attend(q, k, v))
            y = y + rung.fc2(F.gelu(rung.fc1(rung.norm2(y))))
        return m.up(m.norm(y))[:, 0] if m.tokens else m.up(m.norm(y.mean(1)))

    def restuningbypass(self, m: nn.Module, streams: List[Tensor]) -> Tensor:
        """Res-Tuning-Bypass: all tokens go through the chain."""
        chain = streams[0]
        for i in m.layers:
            step, x = m.steps[str(i)], streams[i + 1]
            across, along = (z + a.up(F.gelu(a.down(z))) for z, a in ((x, step.horizontal), (chain, step.vertical)))
            gate = torch.sigmoid(step.alpha)
            chain = gate * across + (1 - gate) * along
        return layer_norm(self.final_norm(), chain.mean(1) if self.video else chain[:, 0])
