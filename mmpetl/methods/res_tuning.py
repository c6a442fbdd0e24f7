# SPDX-License-Identifier: Apache-2.0
"""Res-Tuning: small modules beside the frozen sublayers, one form for adapters, prefixes and prompts.

Jiang et al., "Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from Backbone",
https://arxiv.org/abs/2310.19859::

    OP(x) + tuner(x)                                           OP: the attention or the feed-forward network
    Res-Adapter:  tuner(z) = W_up gelu(W_down z + b_down) + b_up            z: what OP reads, or its output
    Res-Prefix:   (1 - l) Attn(Q, K, V) + l Attn(Q, K_pre, V_pre),          K_pre, V_pre: learned
                  l = sum exp(Q K_pre^T) / (sum exp(Q K^T) + sum exp(Q K_pre^T))
    Res-Prompt:   the same with K_pro = x_pro W_k, V_pro = x_pro W_v        x_pro: learned, beside the attention's input

The weights l make the two attentions one softmax over all keys, which is how they are computed here. Weights of
Res-Adapters are drawn Xavier-uniform and biases from N(0, 1e-12), as in the released code; so are prefixes and prompts,
for which no start was found. The start is not the frozen network.
"""

from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import AS_THEY_ARE, SUBS, BlockSpec, HalfCopies, Layers, Method, PerLayer, nearest, positive

KeysValues = Tuple[Tensor, Tensor]
ON_ATTENTION, ON_FFN = ('prompt', 'prefix', 'adapter'), ('adapter', )


class ResAdapter(nn.Module):
    """up(gelu(down(z))); (..., C) -> (..., C)."""

    def __init__(self, dim: int, mid_dims: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, mid_dims), nn.Linear(mid_dims, dim)

    def reset_parameters(self) -> None:
        """The start of the released code."""
        for linear in (self.down, self.up):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, z: Tensor, half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """z (..., C) -> (..., C); ``half`` gives the weights in the precision of the products."""
        code = recomputed(F.linear, z, half(self.down.weight), half(self.down.bias), level=SMALL_PRODUCT)
        return half.linear(self.up, recomputed(F.gelu, code))


@METHODS.register_module()
class ResTuning(Method):
    """Res-Tuning with a module beside each sublayer.

    Args:
        specs: Blocks of the backbone.
        attn: What stands beside the attention: 'prompt', 'prefix', 'adapter', or None.
        ffn: What stands beside the feed-forward network: 'adapter' or None.
        num_tokens: Prompts or prefixes; per layer where wanted.
        mid_dims: Width of the Res-Adapters; per layer where wanted.
        adapter_input: What Res-Adapters read: 'input', what the sublayer reads, or 'output', what it gives.
        layers: Adapted blocks.

    Raises:
        ValueError: If a number is < 1, a module or ``adapter_input`` is unknown, or no module is left.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 attn: Optional[str] = 'prompt',
                 ffn: Optional[str] = 'adapter',
                 num_tokens: PerLayer = 10,
                 mid_dims: PerLayer = 10,
                 adapter_input: str = 'input',
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        for name, value, known in (('attn', attn, ON_ATTENTION), ('ffn', ffn, ON_FFN)):
            if value is not None and value not in known:
                raise ValueError(f'ResTuning: unknown {name}={value!r}' + nearest(str(value), known) +
                                 f'; choose from {", ".join(known)}, None')
        if adapter_input not in ('input', 'output'):
            raise ValueError(f"ResTuning: adapter_input must be 'input' or 'output', got {adapter_input!r}")
        if attn is None and ffn is None:
            raise ValueError('ResTuning: attn=None and ffn=None leave nothing to train')
        tokens = self.spread(num_tokens, 'num_tokens', positive)
        mids = self.spread(mid_dims, 'mid_dims', positive)
        self.attn, self.ffn, self.adapter_input = attn, ffn, adapter_input
        self.adapters = tuple(sub for sub, kind in zip(SUBS, (attn, ffn)) if kind == 'adapter')
        for i in self.layers if attn == 'adapter' and adapter_input == 'input' else ():
            self.refuse_pooled_attention(i, "adapter_input='input' is what attention reads", "attn='prompt'")
        self.blocks = self.for_parts(self.adapters, lambda i, sub: ResAdapter(self.specs[i].dim, mids[i]))
        if attn in ('prompt', 'prefix'):
            rows = 1 if attn == 'prompt' else 2
            self.tokens = nn.ParameterDict({
                # Prompts pass the projections of keys and values, prefixes stand behind them.
                str(i): nn.Parameter(torch.empty(rows, tokens[i], self.specs[i].op_dims('k')[attn == 'prefix']))
                for i in self.layers})
        self.reset_parameters()

    def active(self, point: str, index: int) -> bool:
        there = self.adapters if point == 'branch' else point == 'kv' and self.attn in ('prompt', 'prefix')
        return bool(there) and index in self.layers

    def branch_subs(self, index: int) -> Tuple[str, ...]:
        return self.adapters

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for adapter in block.values():
                adapter.reset_parameters()
        for tokens in self.tokens.values() if self.attn in ('prompt', 'prefix') else ():
            for part in tokens:  # a matrix (tokens, C) each
                nn.init.xavier_uniform_(part)

    def on_branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """x, y (..., C) -> y + A(x), or y + A(y), (..., C)."""
        return y + self.blocks[str(i)][sub](x if self.adapter_input == 'input' else y, self.half)

    def on_kv(self, i: int) -> KeysValues:
        """Keys and values (heads, num_tokens, head_dim) each."""
        tokens = self.half(self.tokens[str(i)])
        if self.attn == 'prompt':
            keys, values = (F.linear(tokens[0], *self.frozen(i, op, 'read')) for op in 'kv')
        else:
            keys, values = tokens.unbind()
        heads = self.specs[i].heads
        return keys.unflatten(-1, (heads, -1)).transpose(0, 1), values.unflatten(-1, (heads, -1)).transpose(0, 1)
