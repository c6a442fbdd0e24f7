# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's VisionTransformer (supervised, MAE, MoCo v3, DINOv2) and CLIP's image tower, specialised in place."""

from functools import partial
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN, PatchEmbed
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer, VisionTransformer
from mmpretrain.models.utils import MultiheadAttention
from mmpretrain.models.utils.swiglu_ffn import SwiGLUFFN
from torch import Tensor, nn

from ..recompute import recomputed
from ..sites import ALL_OPS, OPS, POINTS, BlockSpec
from .attention import Projections, attend, gate_bias, join_extra, record_keys_values, split_heads
from .block import Linear, SitedBlock, feed_forward, gated_feed_forward, of_ffn, of_swiglu
from .cast import apply_linear
from .embed import SitedEntry, SitedFinalNorm, SitedPatchEmbed
from .family import Family


class SitedMultiheadAttention(Projections, MultiheadAttention):
    """(B, N, C) -> (B, N, C) before drop-path."""

    extra_tokens: int

    def keys_values(self, u: Tensor) -> Tuple[Tensor, Tensor]:
        """Frozen keys and values of normed tokens u (B, N, C), both (B, heads, N, head_dim)."""
        k, v = self.keys_and_values(u).chunk(2, -1)
        return split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def forward(self, x: Tensor, prompts: Optional[Tensor] = None) -> Tensor:
        """x (B, N, C), prompts as keys and values only (1 or B, P, C) -> (B, N, C), or the leading tokens that are
        read."""
        q, k, v, inner, joined = self.project_with(x, prompts)
        record_keys_values(self.tap, k, v, self.num_heads)
        extra = join_extra(self.tap, inner, self.num_heads)
        keys = k.shape[1] + (0 if extra is None else extra[0].shape[-2])
        # Prompts come first among the extra keys, or among the tokens if joined; prompts in the stream stand behind the
        # extra keys and the class token.
        start = 0 if inner is not None else keys - k.shape[1] + (0 if joined else self.extra_tokens)
        # Where a method changes q as a whole, all queries were made; only those that are read attend.
        q = q[:, :self.tap.tokens_read]
        y = attend(q, k, v, self.num_heads, extra, gate_bias(self.tap, keys, start),
                   self.attn_drop if self.training else 0., channels=self.tap.channels(x.shape[1]))
        # LayerScale is elementwise and would keep another tensor of the stream's size.
        return recomputed(self.gamma1, self.proj_drop(self.output(y)))


class EncoderLayer(SitedBlock):
    """Mixin: block of mmpretrain's VisionTransformer and of DeiT3."""

    ffn: nn.Module

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.attn(h, prompts)

    def attention_output(self, y: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.attn.gamma1(apply_linear(self.attn.proj, self.tap, 'proj', y))

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        if isinstance(self.ffn, SwiGLUFFN):
            gate, fc1 = (self.op_parameters(op) for op in ('gate', 'fc1'))
            y = gated_feed_forward(self.tap, gate, fc1, F.silu, self.ffn.norm, self.ffn.w3, h)
            return self.ffn.gamma2(y)
        (fc1, act, drop1), fc2, drop2 = self.ffn.layers
        return self.ffn.gamma2(feed_forward(self.tap, fc1, act, drop1, fc2, drop2, h))

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.attn.out_drop if sub == 'attn' else self.ffn.dropout_layer

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return (of_swiglu if isinstance(self.ffn, SwiGLUFFN) else of_ffn)(self.ffn, op)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> (B, N, C)."""
        return self.run(x)


class SitedEncoderLayer(EncoderLayer, TransformerEncoderLayer):
    """Block of mmpretrain's VisionTransformer."""


def _check(model: VisionTransformer) -> None:
    for i, layer in enumerate(model.layers):
        if not (isinstance(layer.ffn, SwiGLUFFN) or isinstance(layer.ffn, FFN) and layer.ffn.num_fcs == 2):
            raise ValueError(f'block {i}: only two-layer and gated feed-forward networks can be adapted, '
                             f'not {type(layer.ffn).__name__}')
        # Values beside the softmax: no point of the waist stands there.
        if layer.attn.v_shortcut:
            raise ValueError(f'block {i}: attention with v_shortcut cannot be adapted')


def layer_specs(model: Any, ffn_of: Callable[[Any], Tuple[Tuple[str, ...], int]]) -> List[BlockSpec]:
    """Specs of a model with mmpretrain's names; ``ffn_of`` gives the ops and the hidden width of a layer."""
    specs = []
    for i, layer in enumerate(model.layers):
        ops, ffn_dim = ffn_of(layer)
        specs.append(
            BlockSpec(
                index=i,
                stage=0,
                dim=model.embed_dims,
                heads=layer.attn.num_heads,
                ffn_dim=ffn_dim,
                ops=ops,
                extra_tokens=model.num_extra_tokens,
                grid=tuple(model.patch_resolution),
                patch=tuple(model.patch_embed.projection.kernel_size),
                key_bias=layer.attn.qkv.bias is not None))
    return specs


def _ffn_of(layer: Any) -> Tuple[Tuple[str, ...], int]:
    gated = isinstance(layer.ffn, SwiGLUFFN)
    return (ALL_OPS, layer.ffn.w3.in_features) if gated else (OPS, layer.ffn.feedforward_channels)


def _final_norm(model: VisionTransformer) -> Optional[nn.Module]:
    # The norm behind the pooling is the last one then.
    if model.out_type == 'avg_featmap':
        return model.ln2
    return model.ln1 if model.final_norm else None


def _check_prompts(model: VisionTransformer, pooled: bool) -> None:
    # Outputs of inner blocks would hold prompts among their grid tokens.
    inner = [i for i in model.out_indices if i != len(model.layers) - 1]
    if inner and model.out_type != 'cls_token':
        raise ValueError(
            f'prompts in the token stream need out_indices of the last block only, got {list(model.out_indices)}')
    if pooled and model.out_type != 'avg_featmap':
        raise ValueError(f"pool_prompts=True needs out_type='avg_featmap', the backbone has {model.out_type!r}")


def _check_side(model: VisionTransformer) -> None:
    if list(model.out_indices) != [len(model.layers) - 1]:
        raise ValueError('side methods give one vector per image, but the backbone has '
                         f'out_indices={list(model.out_indices)}: set -1')


def _tokens_read(model: VisionTransformer) -> Optional[int]:
    # The class token stands first.
    return 1 if model.out_type == 'cls_token' else None


def _fold_embed_shift(model: VisionTransformer, shift: Tensor) -> Tuple[Tensor, Tensor]:
    """A shift after a bias-less patch embedding moves into the position table of the patch tokens: what to write, and
    its value."""
    patches = model.pos_embed[:, model.num_extra_tokens:]
    return patches, patches + shift


class ClipVisionTransformer(VisionTransformer):
    """A VisionTransformer over the frames of clips; its feature is their mean, or what a method makes of them."""

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """x (B, 3, T, H, W) -> one feature (B, C), or (B, C') of a method with ``on_pool``.

        Raises:
            ValueError: If x is no batch of clips.
        """
        if x.dim() != 5:
            raise ValueError(f'the backbone reads clips (B, 3, T, H, W) by frames, got an input of {tuple(x.shape)}')
        run_time, x = self.petl.run_time, self.petl.images_of(x)
        run_time.frames, run_time.positions = x.shape[2], self.pos_embed
        features = super().forward(x.transpose(1, 2).flatten(0, 1))
        if run_time.mean_first:  # the last norm has averaged
            return features
        return tuple(self.petl.pooled(f.unflatten(0, (len(x), -1))) for f in features)


class SideViT:
    """Mixin: a backbone whose output is the feature of a side method; the base runs without gradients."""

    petl: Any

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """x (B, 3, [T,] H, W) -> one feature (B, C')."""
        run = super().forward  # type: ignore[misc] # of the class behind
        if not self.petl.side_active():
            return run(x)
        return (self.petl.side_feature(lambda: run(x), x), )


class SideVisionTransformer(SideViT, VisionTransformer):
    """A VisionTransformer for side methods."""


class SideClipVisionTransformer(SideViT, ClipVisionTransformer):
    """A VisionTransformer over the frames of clips for side methods."""


FAMILY = Family(
    name='vit',
    points=frozenset(POINTS),
    classes={
        TransformerEncoderLayer: SitedEncoderLayer,
        MultiheadAttention: SitedMultiheadAttention,
        PatchEmbed: SitedPatchEmbed
    },
    tokens_read=_tokens_read,
    sides={
        VisionTransformer: SideVisionTransformer,
        ClipVisionTransformer: SideClipVisionTransformer
    },
    clips={VisionTransformer: ClipVisionTransformer},
    entry=lambda model: model.drop_after_pos,
    entry_class=SitedEntry,
    blocks=lambda model: list(model.layers),
    specs=partial(layer_specs, ffn_of=_ffn_of),
    embed=lambda model: model.patch_embed,
    embed_parameters=lambda model: (model.patch_embed.projection.weight, model.patch_embed.projection.bias),
    fold_embed_shift=_fold_embed_shift,
    final_norm=_final_norm,
    final_class=SitedFinalNorm,
    pools_prompts=lambda model: model.out_type == 'avg_featmap',
    # A norm before the blocks is what tells CLIP's towers apart.
    arch_of=lambda model: 'vit' if isinstance(model.pre_norm, nn.Identity) else 'clip',
    check=_check,
    check_side=_check_side,
    check_prompts=_check_prompts,
)


def build(arch: Any = 'base', **kwargs: Any) -> VisionTransformer:
    """mmpretrain's VisionTransformer."""
    return VisionTransformer(arch=arch, **kwargs)


def build_clip(arch: Any = 'base', **kwargs: Any) -> VisionTransformer:
    """CLIP's image tower: pre-norm, QuickGELU, LayerNorm eps 1e-5, patch embedding without bias."""
    defaults: Dict[str, Any] = dict(
        pre_norm=True, norm_cfg=dict(type='LN', eps=1e-5), layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')))
    return VisionTransformer(arch=arch, **{**defaults, **kwargs})
