# SPDX-License-Identifier: Apache-2.0
"""What backbones of timm, transformers and some of mmpretrain share: projections, biases of places, checks by path."""

from functools import partial
from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import LARGE_PRODUCT, LOOK_UP, recomputed
from ..sites import Tap
from .attention import KeysValues, Projections, Rotation, attend, gate_bias, join_extra, record_keys_values, split_heads
from .cast import apply_linear


def refuse(path: str, module: Any, why: str) -> None:
    """Raise the one line that names a module which cannot be adapted.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f'{path} ({type(module).__name__}) cannot be adapted: {why}')


def check_type(path: str, module: Any, *known: type) -> None:
    """Refuse a module that is not exactly of a known class.

    Raises:
        ValueError: Names the module's path, its class and the known ones.
    """
    # Not isinstance: a subclass may compute something else, and nobody would notice.
    if type(module) not in known:
        refuse(path, module, f'its mathematics is not known here; known: {", ".join(k.__name__ for k in known)}')


def sited(namespace: Dict[str, Any], prefix: str, mixin: type, *upstream: type) -> Dict[type, type]:
    """Subclasses (mixin, upstream class), one per upstream class, by upstream class.

    Args:
        namespace: ``globals()`` of the calling file, where pickle looks the subclasses up.
        prefix: Their names are this and upstream's.
        mixin: What they do otherwise.
        *upstream: Classes of timm or transformers.
    """
    made = {}
    for cls in upstream:
        name = prefix + cls.__name__
        body = dict(__module__=namespace['__name__'], __doc__=f'{cls.__name__} of {cls.__module__.split(".")[0]}.')
        # In the file's namespace under its own name: pickle and deepcopy look classes up there.
        made[cls] = namespace[name] = type(name, (mixin, cls), body)
    return made


def no_mask(attention_mask: Optional[Tensor], owner: nn.Module) -> None:
    """Refuse an attention mask (B, 1, N, N): the points of the waist are defined over all tokens.

    Raises:
        ValueError: If there is a mask.
    """
    if attention_mask is not None:
        raise ValueError(f'{type(owner).__name__}: attention masks are not supported once methods are attached; '
                         'leave attention_mask out')


class ForeignAttention(Projections):
    """Attention of another class than mmpretrain's ViT: (B, N, C) -> (B, N, C). A family says where its parts are.

    Heads are normed (qk-norm) before extra keys and values join, so prompts are normed as tokens are, and what a method
    brings as a finished key stays as it is.
    """

    tap: Tap
    extra_tokens: int

    @property
    def heads(self) -> int:
        return self.num_heads

    @property
    def logit_scale(self) -> Optional[float]:
        """Factor of the logits."""
        return self.scale

    @property
    def attention_drop_rate(self) -> float:
        """Dropout on the attention weights."""
        return self.attn_drop.p

    def rotation(self, *context: Any) -> Optional[Rotation]:
        """Rotary embedding of q and k for one input, from what the block was called with; None: there is none."""
        return None

    def meet(self, op: str, x: Tensor) -> Tensor:
        """Queries or keys (B, N, C) as they enter the logits: normed per head, where the model does so."""
        return x

    def place_bias(self, *context: Any) -> Optional[Tensor]:
        """What places add to the logits, (h, N, N) over the leading tokens and the grid; None: nothing."""
        return None

    def keys_values(self, u: Tensor) -> Tuple[Tensor, Tensor]:
        """Frozen keys and values of normed tokens u (B, N, C), both (B, heads, N, head_dim)."""
        k, v = (F.linear(u, *self.read(op)) for op in 'kv')
        return split_heads(k, self.heads), split_heads(v, self.heads)

    def mix(self, x: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """Attention of x (B, N, C) before the output projection; prompts act as keys and values only."""
        q, k, v = self.project(x)
        q, k = self.meet('q', q), self.meet('k', k)
        record_keys_values(self.tap, k, v, self.heads)
        inner = None
        if prompts is not None:
            # Their queries are made and never asked for.
            _, prompt_k, prompt_v = self.project(prompts)
            inner = self.meet('k', prompt_k), prompt_v
        extra = join_extra(self.tap, inner, self.heads)
        keys = k.shape[1] + (0 if extra is None else extra[0].shape[-2])
        # Prompts come first among the extra keys; prompts in the stream stand behind the extra keys and the leading
        # tokens.
        start = 0 if prompts is not None else keys - k.shape[1] + self.extra_tokens
        bias, gate = self.place_bias(*context), gate_bias(self.tap, keys, start)
        if bias is not None:
            bias = recomputed(with_prompts, bias, self.extra_tokens, k.shape[1], keys, level=LOOK_UP)
            gate = bias if gate is None else bias + gate
        return attend(q, k, v, self.heads, extra, gate, self.attention_drop_rate if self.training else 0.,
                      self.logit_scale, self.rotation(*context), self.tap.channels(k.shape[1]))


def with_prompts(bias: Tensor, extra_tokens: int, tokens: int, keys: int) -> Tensor:
    """Biases of places (h, N, N) -> (1, h, tokens, keys): zero for prompts, which stand behind the leading tokens, and
    for extra keys, which come first; neither has a place."""
    prompts = tokens - bias.shape[-1]
    if prompts:
        first, rest = bias[:, :extra_tokens], bias[:, extra_tokens:]
        bias = torch.cat([first, bias.new_zeros(len(bias), prompts, bias.shape[-1]), rest], 1)
        bias = torch.cat([bias[..., :extra_tokens], bias.new_zeros(len(bias), tokens, prompts),
                          bias[..., extra_tokens:]], -1)
    return F.pad(bias, (keys - tokens, 0))[None]


class SeparateLayers(Projections):
    """Mixin: q, k, v and output projections are linear layers of their own."""

    #: op -> attribute that holds its layer.
    LAYERS: Dict[str, str] = dict(q='q_proj', k='k_proj', v='v_proj', proj='o_proj')

    def layer(self, op: str) -> nn.Linear:
        """The linear layer of q, k, v or proj."""
        return getattr(self, self.LAYERS[op])

    def op_parameters(self, op: str) -> Tuple[Tensor, Optional[Tensor]]:
        """Weight (Cout, Cin) and bias (Cout) of q, k, v or proj."""
        return self.layer(op).weight, self.layer(op).bias

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """x (B, N, C) -> queries, keys and values (B, N, C)."""
        # As in Projections.project, with layers of their own.
        asking = x[:, :self.tap.queries]
        inputs = tuple(self.tap.input(op, t) for t, op in zip((asking, x, x), 'qkv'))
        q, k, v = (apply_linear(self.layer(op), self.tap, op, t) for t, op in zip(inputs, 'qkv'))
        return self.tap.qkv(x, q, k, v, inputs if self.tap.own_inputs else None)

    def of_prompts(self, prompts: Optional[Tensor]) -> KeysValues:
        """Keys and values of prompts, (1 or B, P, C) each; None where there are none."""
        return None if prompts is None else self.project(prompts)[1:]


class SeparateProjections(SeparateLayers, ForeignAttention):
    """:class:`ForeignAttention` with linear layers of their own."""


def rotate_grid(turn: Callable[[Tensor], Tensor], tokens: int) -> Rotation:
    """Rotate the last ``tokens`` tokens of q and k, the grid tokens; class token, registers and prompts have no place.

    Args:
        turn: (B, h, tokens, d) -> same shape.
        tokens: Number of grid tokens.
    """

    def one(x: Tensor) -> Tensor:
        # Grid tokens come last in every family. Rotations of transformers may come back in float32.
        turned = turn(x[:, :, x.shape[2] - tokens:]).type_as(x)
        return turned if x.shape[2] == tokens else torch.cat([x[:, :, :x.shape[2] - tokens], turned], 2)

    return lambda q, k: (one(q), one(k))


def gelu_network(tap: Tap, fc1: nn.Module, act: Callable[[Tensor], Tensor], fc2: nn.Module, h: Tensor) -> Tensor:
    """T(fc2(act(T(fc1(h))))) with the tap T; (..., C) -> (..., C)."""
    h = tap.input('fc1', h)
    y = recomputed(partial(apply_linear, fc1, tap, 'fc1'), h, level=LARGE_PRODUCT)
    mid = recomputed(act, tap.linear('fc1', h, y))
    mid = tap.input('fc2', mid)
    return tap.linear('fc2', mid, apply_linear(fc2, tap, 'fc2', mid))


class PatchConvolution(nn.Conv2d):
    """Patch embedding that is a bare convolution: (B, 3, H, W) -> (B, C, H', W')."""

    tap: Tap

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> (B, C, H', W')."""
        x = super().forward(x)
        self.tap.run_time.grid = tuple(x.shape[2:])
        # Methods see channels last, as everywhere.
        return self.tap.norm('embed', x.movedim(1, -1)).movedim(-1, 1)


def table_with_shift(table: Tensor, extra_tokens: int, shift: Tensor) -> Tuple[Tensor, Tensor]:
    """Where a shift after a bias-less patch embedding goes: the rows of the grid tokens in a position table.

    Args:
        table: (..., extra_tokens + N, C).
        extra_tokens: Leading rows that stay.
        shift: (C, ).

    Returns:
        What to write, and its value.
    """
    # The class token never passed the patch embedding, so it must not be shifted.
    rows = table[..., extra_tokens:, :]
    return rows, rows + shift

