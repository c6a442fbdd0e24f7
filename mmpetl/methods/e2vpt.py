# SPDX-License-Identifier: Apache-2.0
"""E2VPT: prompts in the input of every block, keys and values in its attention, and prompts pruned by tokens and by
segments.

Han et al., "E2VPT: An Effective and Efficient Approach for Visual Prompt Tuning", https://arxiv.org/abs/2307.13770,
equations 4 to 7::

    x_{i+1} = block_i([cls, P_i * m, patches]),    attention(q, [k; K_i], [v; K_i])

K_i (heads, num_kv_tokens, head_dim) stands behind the projections and serves as keys and values alike. Three
published ablations put it elsewhere::

    on queries and values:  attention(k, [q; K_i], [v; K_i])         the logits transposed, so the keys ask
    on queries and keys:    attention([q, K_i], [k, K_i], v)         K_i (heads, tokens, num_kv_tokens) as channels
    on all three:           attention([q, Q_i], [[k; K_i], S_i], [v; K_i])   channels Q_i of the tokens, S_i of all keys

The mask m is
the product of one number per token and one per token and segment of channels; it is shared by the blocks and decided by
scoring, see :mod:`mmpetl.pruning.scores`. Pruned tokens are taken out of the parameters, so the sequence becomes
shorter.
"""

import math
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import METHODS
from ..sites import BlockSpec, Layers, Method, PerLayer, autocast_dtype, nearest, positive, product_as
from .vpt import Pool, check_choices, check_per_sample, draw_prompts, owners, prompt_bound

LAYOUTS = ('interleaved', 'contiguous')
KV_INITS = ('kaiming', 'xavier', 'trunc_normal')
VARIANTS = ('paper', 'released')
PRUNED = ('auto', 'all', 'first')
ATTENTION_PROMPTS = ('kv', 'qv', 'qk', 'qkv')
SHARED = ('prompts', 'kv')


def _one_of(value: Any, known: Sequence[str], name: str) -> str:
    if value not in known:
        raise ValueError(f'E2VPT: unknown {name} {value!r}' + nearest(value, known))
    return value


@METHODS.register_module()
class E2VPT(Method):
    """Prompts and key/value prompts with pruning.

    Args:
        specs: Blocks of the backbone.
        num_tokens: Prompts P of every block.
        num_kv_tokens: Key/value prompts K of every attention, 0 for none; per layer where wanted.
        segments: Segments S into which a prompt's channels are divided.
        segment_layout: 'interleaved' (channel c belongs to segment c mod S, as published) or 'contiguous'.
        share_kv: Whether one tensor serves as keys and values.
        attention_prompts: Where the K prompts of an attention stand: 'kv'; 'qv', on queries and values; 'qk', as
            further channels of queries and keys, for pictures of the size the backbone was built for; 'qkv', as keys
            and values and as channels, which the further keys have too.
        shared: What all adapted blocks use together: any of 'prompts' and 'kv'; published: nothing.
        init: Start of the prompts: 'uniform' as published, or 'trunc_normal' (0.02).
        deep: Give every adapted block its own prompts; otherwise only the first, and they stay in the stream.
        kv_init: 'kaiming' (bound sqrt(6 / (K * head_dim))), 'xavier' (sqrt(6 / (3 h w + 16)) for patches (h, w)) or
            'trunc_normal' (0.02).
        drop_rate: Dropout on the prompts.
        drop_per_sample: Draw a mask for every sample, as published on ViT; otherwise one for the whole batch, which is
            cheaper and published on Swin.
        kv_drop_rate: Dropout on the key/value prompts, one mask for the whole batch.
        pruned: Blocks whose prompts are pruned: 'all', 'first', or 'auto': the first alone where blocks differ in width
            (Swin), else all.
        kept: What pruning left, as its ``state.json`` holds it: ``dict(tokens=ids, segments={id: segment ids})``; None:
            all.
        variant: 'paper' removes pruned tokens. 'released' does as the published code does: masks are trained together
            with the prompts until :meth:`prune`, and pruned tokens stay in the sequence as zeros.
        pool_prompts: Whether a mean pooling after the last block includes the prompts; 'only': over them alone; None:
            the backbone's published form.
        stack: Allow a second prompt method beside this one.
        layers: Adapted blocks.

    Raises:
        ValueError: If a number is out of range, ``segments`` does not divide a pruned block's width, an option is
            unknown, or ``attention_prompts`` is not defined over the backbone or beside another option.
    """

    token_mask: Tensor
    segment_mask: Tensor
    kept: Tensor

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 num_tokens: int = 10,
                 num_kv_tokens: PerLayer = 5,
                 segments: int = 16,
                 segment_layout: str = 'interleaved',
                 share_kv: bool = True,
                 attention_prompts: str = 'kv',
                 shared: Union[str, Sequence[str]] = (),
                 init: str = 'uniform',
                 deep: bool = True,
                 kv_init: str = 'kaiming',
                 drop_rate: float = 0.,
                 drop_per_sample: bool = False,
                 kv_drop_rate: float = 0.,
                 pruned: str = 'auto',
                 kept: Optional[Mapping[str, Any]] = None,
                 variant: str = 'paper',
                 pool_prompts: Pool = None,
                 stack: bool = False,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.num_tokens = positive(num_tokens, 'num_tokens', 'E2VPT')
        self.segments = positive(segments, 'segments', 'E2VPT')
        self.segment_layout = _one_of(segment_layout, LAYOUTS, 'segment_layout')
        self.kv_init = _one_of(kv_init, KV_INITS, 'kv_init')
        self.variant, self.kv_drop_rate = _one_of(variant, VARIANTS, 'variant'), kv_drop_rate
        # Only one of the two drops: a mask per sample is drawn by the tap, which knows the batch.
        self.drop_rate, self.sample_drop_rate = (0., drop_rate) if drop_per_sample else (drop_rate, 0.)
        if drop_per_sample:
            check_per_sample(self.specs, 'E2VPT')
        check_choices(init, pool_prompts, 'E2VPT')
        shared = tuple(_one_of(part, SHARED, 'shared') for part in ((shared, ) if isinstance(shared, str) else shared))
        self.init, self.pool_prompts, self.stack = init, pool_prompts, stack
        own = self.layers if deep else self.layers[:1]
        self.held = owners({i: self.specs[i].entry_dim for i in own}, 'prompts' in shared, 'E2VPT', 'prompts')
        tokens = {i: torch.empty(num_tokens, self.specs[int(i)].entry_dim) for i in dict.fromkeys(self.held.values())}
        self.prompts = nn.ParameterDict({i: nn.Parameter(t) for i, t in tokens.items()})
        same = len({t.shape for t in tokens.values()}) == 1
        # Masks are shared by all pruned blocks, which must therefore have one shape; Swin's stages differ,
        # so 'auto' prunes the first alone there, as published.
        whole = pruned == 'all' or (_one_of(pruned, PRUNED, 'pruned') == 'auto' and same)
        self.pruned_layers = tuple(tokens) if whole else tuple(tokens)[:1]
        for i in self.pruned_layers:
            if tokens[i].shape[1] % segments:
                raise ValueError(f'E2VPT: segments={segments} must divide the width {tokens[i].shape[1]} of block {i}')
        self._check_attention(attention_prompts, share_kv)
        self._make_kv(num_kv_tokens, 1 if share_kv else 2, 'kv' in shared)
        masks = dict(token_mask=torch.ones(num_tokens), segment_mask=torch.ones(num_tokens, segments))
        for name, mask in masks.items():
            if variant == 'released' and kept is None:
                self.register_parameter(name, nn.Parameter(mask))
            else:
                self.register_buffer(name, mask)
        # Not persistent: it follows from token_mask when a state is loaded.
        self.register_buffer('kept', torch.arange(num_tokens), persistent=False)
        self._gates: Tuple[Optional[Tensor], Optional[Tensor]] = (None, None)
        self.reset_parameters()
        if kept is not None:
            self.prune(*self._masks(kept))

    def _check_attention(self, where: str, share_kv: bool) -> None:
        self.attention_prompts, spec = _one_of(where, ATTENTION_PROMPTS, 'attention_prompts'), self.specs[0]
        if where == 'kv':
            return
        named = f'E2VPT: attention_prompts={where!r}'
        if spec.window is not None:
            raise ValueError(f"{named} is not defined over the windows of this backbone: leave it at 'kv'")
        if not share_kv:
            raise ValueError(f'{named} is one tensor for both, as published: leave share_kv at True')
        if where != 'qv' and (self.stack or not spec.grid):
            raise ValueError(f'{named} has one row for every token of a picture: ' + (
                'stack=True cannot be said beside it' if self.stack else 'this backbone does not say how many it has'))

    def _make_kv(self, num_kv_tokens: PerLayer, copies: int, shared: bool) -> None:
        """Key/value prompts of every adapted block, ``copies`` tensors each (2: own keys and values), and channels."""
        lengths = self.spread(num_kv_tokens, 'num_kv_tokens', lambda n, *names: 0 if n == 0 else positive(n, *names))
        sizes = {i: (copies, self.specs[i].heads, n, self.specs[i].head_dim) for i, n in lengths.items() if n}
        rows = self.specs[0].extra_tokens + self.num_tokens + math.prod(self.specs[0].grid)
        if self.attention_prompts == 'qk':
            sizes = {i: (*size[:2], rows, size[2]) for i, size in sizes.items()}
        self.kv_held = owners(sizes, shared, 'E2VPT', 'keys and values')
        held = {key: sizes[int(key)] for key in dict.fromkeys(self.kv_held.values())}
        self.kv_prompts, self.query_channels, self.key_channels = (nn.ParameterDict() for _ in range(3))
        for key, (_, heads, n, _) in held.items():
            self.kv_prompts[key] = nn.Parameter(torch.empty(held[key]))
            if self.attention_prompts == 'qkv':
                self.query_channels[key] = nn.Parameter(torch.empty(heads, rows, n))
                self.key_channels[key] = nn.Parameter(torch.empty(heads, n + rows, n))

    def reset_parameters(self) -> None:
        """Draw prompts and key/value prompts anew and, in the released variant, set trained masks to one; pruning
        stays."""
        # Of the first block for all, as in VPT.
        bound = prompt_bound(self.specs[0], self.specs[0].entry_dim)
        for prompts in self.prompts.values():
            # as many numbers whatever is pruned, so that what is drawn next stays the same
            drawn = draw_prompts(prompts.new_empty(self.num_tokens, prompts.shape[1]), self.init, bound)
            prompts.data.copy_(drawn if len(prompts) == self.num_tokens else drawn[self.kept])
        height, width = self.specs[0].patch[-2:]
        for kv in (*self.kv_prompts.values(), *self.query_channels.values(), *self.key_channels.values()):
            if self.kv_init == 'trunc_normal':
                nn.init.trunc_normal_(kv, std=0.02)
            else:
                # 16 is the published constant, whatever the head's width is.
                fan = 3 * height * width + 16 if self.kv_init == 'xavier' else kv.shape[-2] * kv.shape[-1]
                nn.init.uniform_(kv, -math.sqrt(6 / fan), math.sqrt(6 / fan))
        if self.token_mask.requires_grad:
            nn.init.ones_(self.token_mask)
            nn.init.ones_(self.segment_mask)

    def _masks(self, kept: Mapping[str, Any]) -> Tuple[Tensor, Tensor]:
        tokens, segments = torch.zeros_like(self.token_mask), torch.zeros_like(self.segment_mask)
        try:
            for token in kept['tokens']:
                tokens[int(token)] = 1
                segments[int(token), [int(s) for s in kept['segments'][str(token)]]] = 1
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f'E2VPT: kept must be dict(tokens=ids, segments={{id: segment ids}}) with ids below '
                             f'{self.num_tokens} and {self.segments}, got {str(kept)[:200]}') from error
        return tokens.bool(), segments.bool()

    def active(self, point: str, index: int) -> bool:
        inside = dict(kv=('kv', ), qv=('kv', 'qkv'), qk=('channels', ), qkv=('kv', 'channels'))[self.attention_prompts]
        return index in self.kv_held if point in inside else point == 'prompts' and index in self.held

    def num_prompts(self, index: int) -> int:
        return len(self.prompts[self.held[index]]) if index in self.held else 0

    def on_kv(self, i: int) -> Tuple[Tensor, Tensor]:
        """Keys and values (heads, K, head_dim) each; one tensor serves as both where they are shared."""
        kv = F.dropout(self.half(self.kv_prompts[self.kv_held[i]]), self.kv_drop_rate, self.training)
        # Behind the projections: keys and values go into attention as they are.
        return kv[0], kv[-1]

    def on_qkv(self, i: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """x, q, k, v (B, N, C) -> k, q, v: the keys ask."""
        return k, q, v

    def on_channels(self, i: int, tokens: int, prompts: int) -> Tuple[Tensor, Tensor]:
        """Channels of queries (heads, tokens, K) and keys (heads, tokens, K), one tensor for both; 'qkv': of queries
        and, with rows for its own further keys in front, of keys (heads, K + tokens, K).

        Raises:
            ValueError: If the input has another number of tokens than the backbone was built for.
        """
        held = self.kv_held[i]
        of_q, of_k = ((self.query_channels[held], self.key_channels[held]) if self.attention_prompts == 'qkv' else
                      (self.kv_prompts[held][0], self.kv_prompts[held][0]))
        if tokens - prompts != of_q.shape[1] - self.num_tokens:
            raise ValueError(f'E2VPT: attention_prompts={self.attention_prompts!r} has rows for '
                             f'{of_q.shape[1] - self.num_tokens} tokens and the input has {tokens - prompts}: '
                             'give inputs of the size the backbone was built for')
        queries, keys = (F.dropout(self._rows(self.half(table), of_q.shape[1], prompts), self.kv_drop_rate,
                                   self.training) for table in (of_q, of_k))
        return queries, keys

    def _rows(self, table: Tensor, whole: int, prompts: int) -> Tensor:
        """Rows (heads, ... + whole, K) of a table without those of prompts that are not in the stream."""
        if prompts == self.num_tokens:
            return table
        # Pruned tokens have left the stream, or there are none in this block.
        first = table.shape[1] - whole + self.specs[0].extra_tokens
        rows = table[:, first:first + self.num_tokens][:, self.kept[:prompts]]
        return torch.cat([table[:, :first], rows, table[:, first + self.num_tokens:]], 1)

    def on_prompts(self, i: int) -> Tensor:
        """Prompts (1, P, C), or (B, P, C) under per-sample gates."""
        prompts = self.prompts[self.held[i]]
        if self.held[i] not in self.pruned_layers:
            return F.dropout(self.half(prompts), self.drop_rate, self.training)[None]
        prompts = F.dropout(prompts, self.drop_rate, self.training)
        token_gate, segment_gate = self._gates
        token, segment = self.token_mask, self.segment_mask
        if len(self.kept) < self.num_tokens:
            # Rows of pruned tokens are gone from the prompts, so their masks must not be multiplied in.
            token, segment = token[self.kept], segment[self.kept]
        token = token if token_gate is None else token + token_gate
        segment = segment if segment_gate is None else segment + segment_gate
        # Small mask first: with gates it has a batch axis, and the prompts get it only here.
        mask = segment * token[..., None]
        if self.segment_layout == 'contiguous':
            parts, mask = prompts.unflatten(1, (self.segments, -1)), mask[..., None]
        else:
            parts, mask = prompts.unflatten(1, (-1, self.segments)), mask[..., None, :]
        prompts = product_as(parts, mask, autocast_dtype(prompts)).flatten(-2)
        return prompts if prompts.dim() == 3 else prompts[None]

    @contextmanager
    def gating(self, tokens: Optional[Tensor] = None, segments: Optional[Tensor] = None) -> Iterator[None]:
        """Add offsets to the masks of the kept tokens, one per sample: ``tokens`` (B, P), ``segments`` (B, P, S)."""
        self._gates = (tokens, segments)
        try:
            yield
        finally:
            self._gates = (None, None)

    @torch.no_grad()
    def prune(self, token_keep: Tensor, segment_keep: Tensor) -> None:
        """Prune for good. Optimizers, data-parallel wrappers and taps made before must be renewed.

        Args:
            token_keep: Which of the ``num_tokens`` original tokens remain, bool (P,).
            segment_keep: Which segments of each remain, bool (P, S).

        Raises:
            ValueError: If shapes differ, no token or segment would remain, or something pruned before would come back.
        """
        for name, keep, mask in (('token_keep', token_keep, self.token_mask), ('segment_keep', segment_keep,
                                                                               self.segment_mask)):
            if keep.shape != mask.shape:
                raise ValueError(f'E2VPT: {name} must have the shape {tuple(mask.shape)}, got {tuple(keep.shape)}')
        token_keep, segment_keep = (t.to(self.token_mask.device, torch.bool) for t in (token_keep, segment_keep))
        if not token_keep.any() or not segment_keep[token_keep].any(1).all():
            raise ValueError(
                'E2VPT: cannot prune more than exists: at least one token, and one segment of each kept token, must '
                'remain'
            )
        # Tokens whose parameters no longer exist.
        gone = torch.ones_like(token_keep).index_fill_(0, self.kept, False)
        if (token_keep & gone).any():
            raise ValueError('E2VPT: a token that was removed before cannot be kept: load the unpruned state first')
        self.token_mask.requires_grad_(False).copy_(token_keep)
        # Segments of a token that is gone are gone too, so that counts of what remains can be read off one
        # mask.
        self.segment_mask.requires_grad_(False).copy_(segment_keep & token_keep[:, None])
        if self.variant != 'released':
            rows = token_keep[self.kept]
            for i in self.pruned_layers:
                # Through .data the parameter stays the same object under the same name. Its gradient has the old
                # shape and must go.
                self.prompts[i].data, self.prompts[i].grad = self.prompts[i][rows], None
            self.kept = self.kept[rows]

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        """Take on the stored number of tokens, so that a pruned state loads into an unpruned method and the reverse."""
        mask = state_dict.get(prefix + 'token_mask')
        stored = [state_dict.get(f'{prefix}prompts.{i}') for i in self.pruned_layers]
        if self.variant != 'released' and mask is not None and mask.shape == self.token_mask.shape:
            # Shapes are made to fit before torch compares them; whatever else is wrong with the file, torch
            # reports.
            kept = mask.bool().nonzero()[:, 0].to(self.kept.device)
            if all(t is not None and len(t) == len(kept) for t in stored):
                for i in self.pruned_layers:
                    if len(self.prompts[i]) != len(kept):
                        self.prompts[i].data, self.prompts[i].grad = self.prompts[i].new_zeros(
                            len(kept), self.prompts[i].shape[1]), None
                self.kept = kept
        super()._load_from_state_dict(state_dict, prefix, *args)
