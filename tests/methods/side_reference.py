# SPDX-License-Identifier: Apache-2.0
"""Textbook forms of the side methods on a plain upstream VisionTransformer, for comparison: explicit softmax, keys and
values formed, nothing cached, skipped or recomputed."""

import math
from typing import Dict, List

import torch
import torch.nn.functional as F
from torch import Tensor

State = Dict[str, Tensor]


def token_streams(vit, image: Tensor) -> List[Tensor]:
    """Input of every block, then the output of the last; (B, N, C) each. Upstream's own blocks."""
    x, _ = vit.patch_embed(image)
    if vit.cls_token is not None:
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1)
    streams = [vit.pre_norm(x + vit.pos_embed)]
    for layer in vit.layers:
        streams.append(layer(streams[-1]))
    return streams


def query_block(layer, p: Tensor, x: Tensor):
    """Queries p (B, P, C) through a frozen block whose keys and values come from x (B, N, C) -> h, hh (B, P, C)."""
    heads = layer.attn.num_heads
    q = layer.attn.qkv(layer.ln1(p)).chunk(3, -1)[0]
    _, k, v = layer.attn.qkv(layer.ln1(x)).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    y = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    h = layer.attn.gamma1(layer.attn.proj(y.transpose(1, 2).flatten(2)))
    return h, layer.ffn.gamma2(layer.ffn.layers(layer.ln2(p + h)))


def linear(s: State, name: str, x: Tensor) -> Tensor:
    return x @ s[f'{name}.weight'].T + s[f'{name}.bias']


def norm(s: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * s[f'{name}.weight'] + s[f'{name}.bias']


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def bottleneck(s: State, name: str, x: Tensor) -> Tensor:
    return x + linear(s, f'{name}.fc2', gelu(linear(s, f'{name}.fc1', x)))


def qsm(s: State, name: str, z: Tensor) -> Tensor:
    u = norm(s, f'{name}.norm1', z)
    q = bottleneck(s, f'{name}.attn.q_proj', norm(s, f'{name}.attn.q_norm', u))
    k, v = (bottleneck(s, f'{name}.attn.{op}_proj', norm(s, f'{name}.attn.kv_norm', u)) for op in 'kv')
    a = (q @ k.transpose(-1, -2) / math.sqrt(z.shape[-1])).softmax(-1)
    z = z + s[f'{name}.attn_scale'] * bottleneck(s, f'{name}.attn.proj', a @ v)
    return z + s[f'{name}.ffn_scale'] * bottleneck(s, f'{name}.mlp', norm(s, f'{name}.norm2', z))


def synqt(vit, s: State, image: Tensor, layers=(0, 1, 2)) -> Tensor:
    """Feature (B, C) of SynQT in evaluation mode; ``s``: the method's state."""
    q_means, h_means, hh_means = [], [], []
    streams = token_streams(vit, image)
    for number, i in enumerate(layers):
        layer, x = vit.layers[i], streams[i]
        p = s['queries'][number].expand(len(x), -1, -1)
        if number:
            p = p + s['feat_scale'] * q_means[-1]
        p = qsm(s, f'blocks.{i}.qsm', bottleneck(s, f'blocks.{i}.adapter', p))
        h, hh = query_block(layer, p, x.detach())
        for found, t in ((q_means, p + h + hh), (h_means, h), (hh_means, hh)):
            found.append(t.mean(1, keepdim=True))
    rows = torch.cat([q_means[-1], *q_means, *h_means, *hh_means], 1)
    rows = rows + bottleneck(s, 'row_adapter', norm(s, 'row_norm', rows))
    gates = torch.tanh(gelu(linear(s, 'combine.gate', rows[:, 0])))
    weights = torch.cat([torch.ones_like(gates[:, :1]), gates], 1)
    head = {
        'n.weight': vit.ln1.weight + s['head_norm.weight_offset'],
        'n.bias': vit.ln1.bias + s['head_norm.bias_offset']
    }
    return norm(head, 'n', (weights[..., None] * rows).mean(1))


def vqt(vit, s: State, image: Tensor, layers=(0, 1, 2)) -> Tensor:
    """Feature (B, C * (1 + L * P)) of VQT in evaluation mode."""
    streams = token_streams(vit, image)
    groups = [vit.ln1(streams[-1][:, 0])]
    for i, q in zip(layers, s['queries']):
        p = q.expand(len(image), -1, -1)
        h, hh = query_block(vit.layers[i], p, streams[i].detach())
        groups.append((p + h + hh).flatten(1))
    return torch.cat([g / g.square().sum(1, keepdim=True).sqrt() for g in groups], 1)


def lst(vit, s: State, image: Tensor, layers=(0, 1, 2), heads: int = 3, temperature: float = 0.1) -> Tensor:
    """Feature (B, C) of LST."""
    streams = [x.detach() for x in token_streams(vit, image)]
    y = linear(s, 'stem', streams[0])
    for number, i in enumerate(layers):
        gate = 1 / (1 + torch.exp(-s['gates'][number] / temperature))
        y = gate * y + (1 - gate) * linear(s, f'downs.{i}', streams[i + 1])
        name = f'rungs.{i}'
        qkv = linear(s, f'{name}.qkv', norm(s, f'{name}.norm1', y, 1e-6))
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        h = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        y = y + linear(s, f'{name}.proj', h.transpose(1, 2).flatten(2))
        y = y + linear(s, f'{name}.fc2', F.gelu(linear(s, f'{name}.fc1', norm(s, f'{name}.norm2', y, 1e-6))))
    return linear(s, 'up', norm(s, 'norm', y, 1e-6))[:, 0]
