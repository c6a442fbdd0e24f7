# SPDX-License-Identifier: Apache-2.0
"""timm's VisionTransformer (AugReg, DeiT 3, DINOv2, CLIP, SigLIP ...), specialised in place.

LayerScale, register tokens, qk-norm, inner norms and attention pooling stay as the model has them.
"""

from typing import Any, List, Optional

from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..recompute import recomputed
from ..sites import CLIP_POINTS, POINTS, BlockSpec
from .block import Linear, SitedBlock
from .cast import apply_linear
from .family import Family
from .foreign import ForeignAttention, check_type, no_mask, refuse
from .form import TimmForm
from .timm_parts import (
    SitedTimmNorm,
    SitedTimmPatchEmbed,
    check_mlp,
    check_prompts,
    embed_parameters,
    final_norm,
    fold_embed_shift,
    mlp_ops,
    mlp_parameters,
    pools,
    run_mlp,
)


class SitedTimmAttention(ForeignAttention, Attention):
    """(B, N, C) -> (B, N, C), with qk-norm, inner norm and output gate where the model has them."""

    def meet(self, op: str, x: Tensor) -> Tensor:
        """Queries or keys (B, N, C), normed per head -> same shape."""
        norm = self.q_norm if op == 'q' else self.k_norm
        return x if isinstance(norm, nn.Identity) else norm(x.unflatten(-1, (self.num_heads, -1))).flatten(-2)

    def forward(self, x: Tensor, prompts: Optional[Tensor] = None) -> Tensor:
        """x (B, N, C), prompts as keys and values only (1 or B, P, C) -> (B, N, C)."""
        y = self.norm(self.mix(x, prompts))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.proj_drop(self.output(y))


class SitedTimmBlock(SitedBlock, Block):
    """Block of timm's VisionTransformer."""

    @property
    def key_bias_cancels(self) -> bool:  # type: ignore[override]
        # A norm behind the bias makes its effect depend on the key.
        return isinstance(self.attn.k_norm, nn.Identity)

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return recomputed(self.ls1, self.attn(h, prompts))

    def attention_output(self, y: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.ls1(apply_linear(self.attn.proj, self.tap, 'proj', y))

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.ls2(run_mlp(self.tap, self.mlp, h))

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path1 if sub == 'attn' else self.drop_path2

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return mlp_parameters(self.mlp, op)

    def forward(self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False) -> Tensor:
        """x (B, N, C) -> (B, N, C)."""
        no_mask(attn_mask, self)
        if is_causal:
            raise ValueError(f'{type(self).__name__}: causal attention is not supported once methods are attached')
        return self.run(x)


def _check(model: VisionTransformer) -> None:
    check_type('patch_embed', model.patch_embed, PatchEmbed)
    for i, block in enumerate(model.blocks):
        check_type(f'blocks.{i}', block, Block)
        check_type(f'blocks.{i}.attn', block.attn, Attention)
        check_mlp(f'blocks.{i}.mlp', block.mlp)
        for name in ('ls1', 'ls2'):
            # It would overwrite a tensor that is kept, or computed again, for the backward pass.
            if getattr(getattr(block, name), 'inplace', False):
                refuse(f'blocks.{i}.{name}', getattr(block, name), 'it scales in place')
        # Ops q, k, v, proj are C x C everywhere in the waist.
        if block.attn.attn_dim != model.embed_dim:
            refuse(f'blocks.{i}.attn', block.attn,
                   f'its heads are {block.attn.attn_dim} wide together, the stream {model.embed_dim}')
    if not isinstance(model.patch_drop, nn.Identity):
        refuse('patch_drop', model.patch_drop, 'tokens that are dropped at random have no place in the grid')


def _specs(model: VisionTransformer) -> List[BlockSpec]:
    return [
        BlockSpec(
            index=i,
            stage=0,
            dim=model.embed_dim,
            heads=block.attn.num_heads,
            ffn_dim=block.mlp.fc2.in_features,
            extra_tokens=model.num_prefix_tokens,
            grid=tuple(model.patch_embed.grid_size),
            patch=tuple(model.patch_embed.patch_size),
            key_bias=block.attn.qkv.bias is not None,
            ops=mlp_ops(block.mlp)) for i, block in enumerate(model.blocks)
    ]


def _check_side(model: VisionTransformer) -> None:
    for i, block in enumerate(model.blocks):
        for name in ('q_norm', 'k_norm', 'norm', 'gate'):
            if not isinstance(getattr(block.attn, name), (nn.Identity, type(None))):
                refuse(f'blocks.{i}.attn.{name}', getattr(block.attn, name), 'side methods are not defined over it')


class SideTimmVisionTransformer(VisionTransformer):
    """A VisionTransformer whose feature is that of a side method; the base runs without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> (B, C') or, with a head, (B, classes)."""
        if not self.petl.side_active():
            return super().forward(x)
        # Upstream's head stays behind the feature; it is an identity where there is none.
        run = super().forward_features
        return self.head(self.head_drop(self.petl.side_feature(lambda: run(x))))

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (B, 3, H, W) -> tokens (B, N, C) of the base.

        Raises:
            ValueError: If a side method is to act, which gives no tokens.
        """
        if self.petl.side_active():
            raise ValueError(f'{type(self.petl.side_method()).__name__} gives one vector per picture and no tokens: '
                             'call the model itself, not forward_features')
        return super().forward_features(x, *args, **kwargs)


class FormTimmVisionTransformer(TimmForm, VisionTransformer):
    """A VisionTransformer as backbone."""


FAMILY = Family(
    name='timm_vit',
    points=frozenset(POINTS) - CLIP_POINTS,
    classes={Block: SitedTimmBlock, Attention: SitedTimmAttention, PatchEmbed: SitedTimmPatchEmbed},
    sides={VisionTransformer: SideTimmVisionTransformer},
    forms={VisionTransformer: FormTimmVisionTransformer},
    blocks=lambda model: list(model.blocks),
    specs=_specs,
    embed=lambda model: model.patch_embed,
    embed_parameters=embed_parameters,
    fold_embed_shift=fold_embed_shift,
    final_norm=final_norm,
    final_class=SitedTimmNorm,
    pools_prompts=pools,
    check=_check,
    own_names=lambda model, state: state,
    check_prompts=check_prompts,
    check_side=_check_side,
    head=('head', ),
)
