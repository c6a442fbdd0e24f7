# SPDX-License-Identifier: Apache-2.0
"""Prefix tuning: learned keys and values that every query of a block can attend to, or learned channels of queries
and keys.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", https://arxiv.org/abs/2101.00190, section
4.3; on video transformers as in Yu et al., https://arxiv.org/abs/2210.00788::

    [K_p | V_p] = W_2 tanh(W_1 E + b_1) + b_2,    attention(q, [k; K_p], [v; V_p])

with a table E (num_tokens, C) and an MLP per block. With ``ops='qk'``, the second form of Yu et al., E is (num_tokens,
heads * N) for the N tokens of an attention, and the MLP gives every token further channels::

    attention([q, Q_p^T], [k, K_p^T], v),    that is logits  scale * (q k^T + Q_p^T K_p)

The MLP serves training only: in evaluation its output is computed once and kept.
"""

import math
from typing import Any, Dict, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import METHODS
from ..sites import AS_THEY_ARE, BlockSpec, HalfCopies, Layers, Method, PerLayer, autocast_dtype, positive

KeysValues = Tuple[Tensor, Tensor]


class PrefixTable(nn.Module):
    """One block's prefix: table (tokens, heads * width) and MLP, or without ``mid`` the two results (2, heads, tokens,
    width) themselves, under the name ``free``. The width is that of a head, or the number of positions."""

    def __init__(self, heads: int, tokens: int, width: int, mid: int, free: str) -> None:
        super().__init__()
        self.heads, self.free = heads, free
        if mid:
            self.table = nn.Parameter(torch.empty(tokens, heads * width))
            self.down = nn.Linear(heads * width, mid)
            self.up = nn.Linear(mid, 2 * heads * width)
        else:
            self.register_parameter(free, nn.Parameter(torch.empty(2, heads, tokens, width)))

    def forward(self, half: HalfCopies = AS_THEY_ARE) -> KeysValues:
        """Parameters as products read them -> keys and values, or queries and keys, (heads, tokens, width) each."""
        if hasattr(self, self.free):
            return half(getattr(self, self.free)).unbind()
        both = half.linear(self.up, torch.tanh(half.linear(self.down, half(self.table))))
        # Keys come first in the MLP's outputs, each with its heads side by side.
        return both.view(len(both), 2, self.heads, -1).permute(1, 2, 0, 3).unbind(0)


class Cached:
    """A result that stays valid while the very tensors it was computed from are unchanged.

    Compared are the tensors' identity, memory and version counter, which every in-place write raises, so optimizer
    steps, loading, moving and swapping are noticed. Holding on to the tensors keeps their memory from being handed to
    others. Writing through ``tensor.data`` escapes the counter; :meth:`Prefix.train` therefore drops all results
    whenever the mode is set.
    """

    def __init__(self, sources: Sequence[Tensor], result: KeysValues) -> None:
        # detach shares memory and holds it, so that data_ptr below cannot be a later tensor's at the same
        # address.
        self.state = [(t, t.detach(), t._version) for t in sources]
        # What was computed under one autocast setting has another precision under the next.
        self.half = autocast_dtype(sources[0])
        self.result = result

    def valid(self, sources: Sequence[Tensor]) -> bool:
        """Whether a result computed from ``sources``, tensors of any shape (...), is still theirs."""
        return self.half == autocast_dtype(sources[0]) and len(sources) == len(self.state) and all(
            t is s and t._version == version and t.data_ptr() == data.data_ptr()
            for t, (s, data, version) in zip(sources, self.state))

    # A copy of the model has other tensors, so its cache begins empty.
    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()


@METHODS.register_module()
class Prefix(Method):
    """Prefix tuning with the MLP of its authors.

    Args:
        specs: Blocks of the backbone.
        num_tokens: Prefix length; with ``ops='qk'`` the channels that queries and keys gain. Per layer where wanted.
        mid_dims: Hidden width of the MLP; None trains its results directly. Per layer where wanted.
        ops: 'kv', further keys and values, or 'qk', further channels of queries and keys.
        positions: Tokens N of an attention, for 'qk'; None: the leading tokens and the grid, or the window. Windows
            along which the input is shorter have fewer: (8, 7, 7) holds 196 in clips of 8 frames. Per layer where
            wanted.
        drop_rate: Dropout on the prefix, one mask for the whole batch.
        layers: Adapted blocks.

    Raises:
        ValueError: If a number is < 1, ``ops`` is unknown, or the number of positions is given for 'kv' or not known
            for 'qk'.
    """

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 num_tokens: PerLayer = 16,
                 mid_dims: PerLayer = 128,
                 ops: str = 'kv',
                 positions: PerLayer = None,
                 drop_rate: float = 0.,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        tokens = self.spread(num_tokens, 'num_tokens', positive)
        mids = self.spread(mid_dims, 'mid_dims', lambda mid, *names: 0 if mid is None else positive(mid, *names))
        if ops not in ('kv', 'qk'):
            raise ValueError(f"Prefix: ops must be 'kv' or 'qk', got {ops!r}")
        if ops == 'kv' and positions is not None:
            raise ValueError("Prefix: positions belong to ops='qk'; leave them out")
        self.ops, self.drop_rate = ops, drop_rate
        self.positions = self._positions(positions) if ops == 'qk' else {}
        free = 'keys_values' if ops == 'kv' else 'queries_keys'
        self.blocks = self.for_blocks(lambda i: PrefixTable(
            self.specs[i].heads, tokens[i], self.positions.get(i, 0) or self.specs[i].head_dim, mids[i], free))
        # A plain attribute: no state, and nothing of it in files.
        self._cache: Dict[int, Cached] = {}
        self.reset_parameters()

    def _positions(self, given: PerLayer) -> Dict[int, int]:
        """Tokens of an attention, by block."""
        found = self.spread(given, 'positions', lambda n, *names: n if n is None else positive(n, *names))
        for i, n in found.items():
            spec = self.specs[i]
            if spec.pools_keys:
                raise ValueError(f"Prefix: block {i} pools queries and keys by kernels of its channels, so ops='qk' "
                                 "is not defined there; ops='kv' is")
            if n is None and not (spec.window or spec.grid):
                raise ValueError("Prefix: ops='qk' needs positions, the tokens of an attention: "
                                 f'block {i} does not say its own')
            if n is None and spec.window:
                axes = zip(spec.window, spec.grid or spec.window)
                found[i] = math.prod(min(pair) for pair in axes)
            elif n is None:
                found[i] = spec.extra_tokens + math.prod(spec.grid)
        return found

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            if hasattr(block, block.free):
                nn.init.normal_(getattr(block, block.free), std=0.02)
            else:
                # Of unit size, as an embedding: the MLP's weights set the scale.
                nn.init.normal_(block.table)
                block.down.reset_parameters()
                block.up.reset_parameters()

    def train(self, mode: bool = True) -> 'Prefix':
        self._cache = {}
        return super().train(mode)

    def active(self, point: str, index: int) -> bool:
        return point == ('kv' if self.ops == 'kv' else 'channels') and index in self.layers

    def on_kv(self, i: int) -> KeysValues:
        """Keys and values (heads, num_tokens, head_dim) each."""
        return self._prefix(i)

    def on_channels(self, i: int, tokens: int, prompts: int) -> KeysValues:
        """Channels of queries and keys, (heads, tokens, num_tokens) each; prompts of other methods have zeros.

        Raises:
            ValueError: If the input has another number of positions.
        """
        if tokens - prompts != self.positions[i]:
            raise ValueError(f"Prefix: ops='qk' was built for positions={self.positions[i]}, block {i} attends over "
                             f'{tokens - prompts}: give that number, or inputs of the size it was built for')
        queries, keys = (t.transpose(1, 2) for t in self._prefix(i))
        return self._with_prompts(i, queries, prompts), self._with_prompts(i, keys, prompts)

    def _with_prompts(self, i: int, rows: Tensor, prompts: int) -> Tensor:
        """Rows (heads, N, R) of the leading and the grid tokens -> (heads, N + prompts, R), zeros between them."""
        if not prompts:
            return rows
        first = self.specs[i].extra_tokens
        return torch.cat([rows[:, :first], rows.new_zeros(len(rows), prompts, rows.shape[2]), rows[:, first:]], 1)

    def _prefix(self, i: int) -> KeysValues:
        """The block's results, dropped out in training, kept in evaluation: (heads, num_tokens, width) each."""
        block = self.blocks[str(i)]
        # A compiler or tracer would bake the cached tensors into its graph, and with gradients the graph of
        # the MLP is needed.
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            k, v = block(self.half)
            return F.dropout(k, self.drop_rate, self.training), F.dropout(v, self.drop_rate, self.training)
        sources: List[Tensor] = list(block.parameters())
        if any(t.is_inference() for t in sources):  # such tensors count no versions
            return block(self.half)
        found = self._cache.get(i)
        if found is None or not found.valid(sources):
            found = self._cache[i] = Cached(sources, block(self.half))
        return found.result
