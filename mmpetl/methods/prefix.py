# SPDX-License-Identifier: Apache-2.0
"""Prefix tuning: learned keys and values that every query of a block can attend to.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", https://arxiv.org/abs/2101.00190, section
4.3; on video transformers as in Yu et al., https://arxiv.org/abs/2210.00788::

    [K_p | V_p] = W_2 tanh(W_1 E + b_1) + b_2,    attention(q, [k; K_p], [v; V_p])

with a table E (num_tokens, C) and an MLP per block. The MLP serves training only: in evaluation its output is computed
once and kept.
"""

from typing import Any, Dict, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import METHODS
from ..sites import AS_THEY_ARE, BlockSpec, HalfCopies, Layers, Method, PerLayer, autocast_dtype, positive

KeysValues = Tuple[Tensor, Tensor]


class PrefixTable(nn.Module):
    """One block's prefix: table (tokens, C) and MLP, or without ``mid`` the keys and values (2, heads, tokens, C /
    heads) themselves."""

    def __init__(self, spec: BlockSpec, tokens: int, mid: int) -> None:
        super().__init__()
        self.heads = spec.heads
        if mid:
            self.table = nn.Parameter(torch.empty(tokens, spec.dim))
            self.down = nn.Linear(spec.dim, mid)
            self.up = nn.Linear(mid, 2 * spec.dim)
        else:
            self.keys_values = nn.Parameter(torch.empty(2, spec.heads, tokens, spec.head_dim))

    def forward(self, half: HalfCopies = AS_THEY_ARE) -> KeysValues:
        """Parameters as products read them -> keys and values, (heads, tokens, head_dim) each."""
        if hasattr(self, 'keys_values'):
            return half(self.keys_values).unbind()
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
        num_tokens: Prefix length; per layer where wanted.
        mid_dims: Hidden width of the MLP; None trains keys and values directly. Per layer where wanted.
        drop_rate: Dropout on the prefix's keys and values, one mask for the whole batch.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``num_tokens`` or ``mid_dims`` < 1, or a block lies outside the backbone.
    """

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 num_tokens: PerLayer = 16,
                 mid_dims: PerLayer = 128,
                 drop_rate: float = 0.,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        tokens = self.spread(num_tokens, 'num_tokens', positive)
        mids = self.spread(mid_dims, 'mid_dims', lambda mid, *names: 0 if mid is None else positive(mid, *names))
        self.drop_rate = drop_rate
        self.blocks = self.for_blocks(lambda i: PrefixTable(self.specs[i], tokens[i], mids[i]))
        # A plain attribute: no state, and nothing of it in files.
        self._cache: Dict[int, Cached] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            if hasattr(block, 'keys_values'):
                nn.init.normal_(block.keys_values, std=0.02)
            else:
                # Of unit size, as an embedding: the MLP's weights set the scale.
                nn.init.normal_(block.table)
                block.down.reset_parameters()
                block.up.reset_parameters()

    def train(self, mode: bool = True) -> 'Prefix':
        self._cache = {}
        return super().train(mode)

    def on_kv(self, i: int) -> KeysValues:
        """Keys and values (heads, num_tokens, head_dim) each."""
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
