# SPDX-License-Identifier: Apache-2.0
"""LST: ladder side tuning, a narrow transformer beside the frozen one that takes in its layer outputs.

Sung et al., "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning",
https://arxiv.org/abs/2206.06522. With x_0 the embedded tokens, x_{i+1} the output of block i, d = C / reduction and
T = 0.1::

    y = Down(x_0)
    y <- Block_i(g_i * y + (1 - g_i) * Down_i(x_{i+1})),    g_i = sigmoid(alpha_i / T)
    feature = Up(LN(y))

Block_i is a pre-norm transformer block of width d with as many heads and the same ratio of the feed-forward width. No
gradient enters the frozen network.
"""

from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import METHODS
from ..sites import AS_THEY_ARE, OPS, BlockSpec, HalfCopies, Layers, Method, cast_together, nearest, positive
from .vqt import one_width, recompute


class SideBlock(nn.Module):
    """Pre-norm transformer block of width d; (B, N, d) -> (B, tokens, d), the first ``tokens`` outputs (None: all)."""

    def __init__(self, dim: int, heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.heads = heads
        # 1e-6 as in the vision transformers beside which it stands.
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, ffn_dim), nn.Linear(ffn_dim, dim)

    def forward(self, y: Tensor, tokens: Optional[int] = None, half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """y (B, N, d) -> (B, tokens or N, d); ``half`` gives the weights in the precision of the products."""
        qkv = half.linear(self.qkv, half.norm(self.norm1, y))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # The last rung need only answer for the tokens that are read; keys and values come from all.
        h = F.scaled_dot_product_attention(q[:, :, :tokens], k, v).transpose(1, 2).flatten(2)
        y = y[:, :tokens] + half.linear(self.proj, h)
        return y + half.linear(self.fc2, F.gelu(half.linear(self.fc1, half.norm(self.norm2, y))))


Weights = Dict[str, Tuple[Tensor, Optional[Tensor]]]


def strongest(importance: Tensor, groups: int, count: int) -> Tensor:
    """Indices (groups * count, ), in order, of the ``count`` largest of each of ``groups`` equal parts of importance
    (C, )."""
    parts = importance.view(groups, -1)
    return (parts.topk(count).indices.sort().values + torch.arange(groups).to(parts.device)[:, None] * parts.shape[1]
            ).flatten()


def stream_importance(block: Weights) -> Tensor:
    """Sum of the absolute weights that read or write each channel of the stream, (C, )."""
    read = [block[op][0].abs().sum(0) for op in ('q', 'k', 'v', 'fc1')]
    return torch.stack(read + [block[op][0].abs().sum(1) for op in ('proj', 'fc2')]).sum(0)


def prune_into(rung: SideBlock, block: Weights, channels: Tensor) -> None:
    """Write a block's strongest rows and columns into a rung.

    Args:
        rung: Block of width d.
        block: The base's weights (Cout, Cin) and biases (Cout) by op.
        channels: Channels of the stream that are kept, (d, ).
    """
    heads, width = rung.heads, len(channels) // rung.heads

    def inner(ops: Sequence[str], out: str = '', groups: int = heads, count: int = width) -> Tensor:
        made = sum(block[op][0].abs().sum(1) for op in ops)
        return strongest(made if not out else made + block[out][0].abs().sum(0), groups, count)

    # Queries and keys meet in one product, values and the output projection in another: each pair keeps one choice.
    keys, values = inner('qk'), inner('v', 'proj')
    hidden = inner(('fc1', ), 'fc2', 1, rung.fc1.out_features)
    rows = torch.cat([block[op][0][chosen][:, channels] for op, chosen in zip('qkv', (keys, keys, values))])
    biases = [w.new_zeros(len(w)) if b is None else b for w, b in (block[op] for op in 'qkv')]
    rung.qkv.weight.copy_(rows)
    rung.qkv.bias.copy_(torch.cat([b[chosen] for b, chosen in zip(biases, (keys, keys, values))]))
    for linear, op, into, out in ((rung.proj, 'proj', channels, values), (rung.fc1, 'fc1', hidden, channels),
                                  (rung.fc2, 'fc2', channels, hidden)):
        weight, bias = block[op]
        linear.weight.copy_(weight[into][:, out])
        if bias is not None:
            linear.bias.copy_(bias[into])


@METHODS.register_module()
class LST(Method):
    """Ladder side tuning; the feature is C wide: the class token, or the mean of all tokens where the backbone has
    none.

    Args:
        specs: Blocks of the backbone.
        reduction: r, the backbone's width over the ladder's.
        temperature: T of the gates.
        init: Start of the rungs: 'random', or 'pruned': the base's own blocks, of which the rows and columns with the
            largest sums of absolute weights are kept (structured pruning, as the paper does for its language models).
        checkpoint: Recompute each rung in the backward pass.
        layers: Blocks whose output feeds a rung (the others have no rung).

    Raises:
        ValueError: If ``reduction`` < 1, the width does not divide by it, the ladder's width does not divide by the
            number of heads, the blocks differ in width, ``init`` is unknown, or a gated block is to be pruned.
    """

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 reduction: int = 8,
                 temperature: float = 0.1,
                 init: str = 'random',
                 checkpoint: bool = False,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        dim, first = one_width(specs, 'LST'), specs[0]
        if dim % positive(reduction, 'reduction', 'LST'):
            raise ValueError(f'LST: the width {dim} does not divide by reduction={reduction}')
        width = dim // reduction
        if width % first.heads:
            raise ValueError(
                f'LST: the ladder is {width} wide, which does not divide by {first.heads} heads; choose another '
                f'reduction '
                f'than {reduction}')
        if init not in ('random', 'pruned'):
            raise ValueError(f'LST: unknown init {init!r}' + nearest(init, ('random', 'pruned')))
        if init == 'pruned' and any('gate' in spec.ops for spec in specs):
            raise ValueError("LST: init='pruned' needs blocks of two linear layers, this backbone has gated ones")
        self.init = init
        if not temperature > 0:
            raise ValueError(f'LST: temperature must be > 0, got {temperature!r}')
        # The output of a block is the input of the next, so only the last block's must be kept on its own.
        self.side_reads = ('x', 'out') if len(specs) - 1 in self.layers else ('x', )
        self.temperature, self.checkpoint = temperature, checkpoint
        # The class token, or all tokens where their mean is the feature.
        self.tokens = 1 if first.extra_tokens else None
        self.stem = nn.Linear(dim, width)
        self.downs = self.for_blocks(lambda i: nn.Linear(dim, width))
        self.rungs = self.for_blocks(lambda i: SideBlock(width, first.heads, first.ffn_dim // reduction))
        self.gates = nn.Parameter(torch.empty(len(self.layers)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, dim)
        self.reset_parameters()

    def active(self, point: str, index: int) -> bool:
        # The output of block i is the input of block i + 1.
        # Block 0 always: its input feeds the stem.
        return point == 'side' and (index == 0 or index - 1 in self.layers)

    def reset_parameters(self) -> None:
        """Gates half open; linears of the rungs as in a vision transformer (truncated normal 0.02), the others torch's
        default."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                module.reset_parameters()
        for linear in (m for m in self.rungs.modules() if isinstance(m, nn.Linear)):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.gates)

    @torch.no_grad()
    def on_loaded(self) -> None:
        """Rungs start from the base's weights, if so wanted and not trained since: training moves the gates first."""
        if self.init != 'pruned' or self.gates.any():
            return
        blocks = {i: {op: self.frozen(i, op) for op in OPS} for i in self.layers}
        importance = torch.stack([stream_importance(block) for block in blocks.values()]).sum(0)
        channels = strongest(importance, 1, self.stem.out_features)
        for i, block in blocks.items():
            prune_into(self.rungs[str(i)], block, channels)

    def _rung(self, i: int, y: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        """Ladder state (B, N, d) and block output (B, N, C) -> next state; the last rung returns only the tokens that
        are read."""
        down = self.half.linear(self.downs[str(i)], x)
        # g y + (1 - g) down with one product less.
        return self.rungs[str(i)](down + gate * (y - down), self.tokens if i == self.layers[-1] else None, self.half)

    def on_side(self, reads: Sequence[Mapping[str, Tensor]], blocks: Sequence[Any]) -> Tensor:
        """Block inputs ``x`` and the last block's ``out``, all (B, N, C) -> feature (B, C)."""
        # Shifted by one: entry i is what block i gave.
        outputs = [read.get('x') for read in reads] + [reads[-1].get('out')]
        if not self.checkpoint:  # which would keep the copies
            outputs = cast_together(outputs)
        y = self.half.linear(self.stem, outputs.pop(0))
        gates = torch.sigmoid(self.gates / self.temperature).to(y.dtype)
        for i, gate in zip(self.layers, gates):
            y = recompute(self.checkpoint, self._rung, i, y, outputs[i], gate)
        y = y[:, 0] if self.tokens else y.mean(1)
        return self.half.linear(self.up, self.half.norm(self.norm, y))
