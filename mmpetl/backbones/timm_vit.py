"""timm's VisionTransformer (AugReg, DeiT 3, DINOv2, CLIP, SigLIP ...), specialised in place.

LayerScale, register tokens, qk-norm, inner norms and attention pooling stay as the model has them.
"""

from typing import Any, List, Optional, Tuple

from timm.layers import Attention, LayerNorm, Mlp, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..recompute import recomputed
from ..sites import POINTS, BlockSpec, Tap
from .block import SitedBlock, feed_forward
from .embed import SitedFinalNorm
from .family import Family
from .foreign import ForeignAttention, check_type, no_mask, refuse, table_with_shift
from .form import TimmForm


class SitedTimmAttention(ForeignAttention, Attention):
    """(B, N, C) -> (B, N, C), with qk-norm, inner norm and output gate where the model has them."""

    def meet(self, op: str, x: Tensor) -> Tensor:
        norm = self.q_norm if op == 'q' else self.k_norm
        return x if isinstance(norm, nn.Identity) else norm(x.unflatten(-1, (self.num_heads, -1))).flatten(-2)

    def forward(self, x: Tensor, prompts: Optional[Tensor] = None) -> Tensor:
        y = self.norm(self.mix(x, prompts))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.proj_drop(self.output(y))


class SitedTimmBlock(SitedBlock, Block):
    """Block of timm's VisionTransformer."""

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        return recomputed(self.ls1, self.attn(h, prompts))

    def attention_output(self, y: Tensor) -> Tensor:
        return self.ls1(self.attn.proj(y))

    def feed_forward(self, h: Tensor) -> Tensor:
        mlp = self.mlp
        return self.ls2(
            feed_forward(self.tap, mlp.fc1, mlp.act, lambda t: mlp.norm(mlp.drop1(t)), mlp.fc2, mlp.drop2, h))

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path1 if sub == 'attn' else self.drop_path2

    def op_parameters(self, op: str) -> Tuple[Tensor, Optional[Tensor]]:
        """Weight (Cout, Cin) and bias of one op, as views of the parameters."""
        if op in ('fc1', 'fc2'):
            linear = getattr(self.mlp, op)
            return linear.weight, linear.bias
        return self.attn.op_parameters(op)

    def forward(self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False) -> Tensor:
        no_mask(attn_mask, self)
        if is_causal:
            raise ValueError(f'{type(self).__name__}: causal attention is not supported once methods are attached')
        return self.run(x)


class SitedTimmPatchEmbed(PatchEmbed):
    """(B, 3, H, W) -> (B, N, C), or (B, H', W', C) where the image size is dynamic."""

    tap: Tap

    def forward(self, x: Tensor) -> Tensor:
        self.tap.run_time.grid = self.dynamic_feat_size(x.shape[-2:])
        return self.tap.norm('embed', super().forward(x))


class SitedTimmNorm(SitedFinalNorm, LayerNorm):
    """timm's LayerNorm in last place."""

    _fast_norm = False  # a plain LayerNorm becomes this class too


def _check(model: VisionTransformer) -> None:
    check_type('patch_embed', model.patch_embed, PatchEmbed)
    for i, block in enumerate(model.blocks):
        check_type(f'blocks.{i}', block, Block)
        check_type(f'blocks.{i}.attn', block.attn, Attention)
        check_type(f'blocks.{i}.mlp', block.mlp, Mlp)
        for name in ('ls1', 'ls2'):
            if getattr(getattr(block, name), 'inplace', False):
                refuse(f'blocks.{i}.{name}', getattr(block, name), 'it scales in place')
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
            ffn_dim=block.mlp.fc1.out_features,
            extra_tokens=model.num_prefix_tokens,
            grid=tuple(model.patch_embed.grid_size),
            patch=tuple(model.patch_embed.patch_size),
            key_bias=block.attn.qkv.bias is not None) for i, block in enumerate(model.blocks)
    ]


def _check_side(model: VisionTransformer) -> None:
    for i, block in enumerate(model.blocks):
        for name in ('q_norm', 'k_norm', 'norm', 'gate'):
            if not isinstance(getattr(block.attn, name), (nn.Identity, type(None))):
                refuse(f'blocks.{i}.attn.{name}', getattr(block.attn, name), 'side methods are not defined over it')


def _pools(model: VisionTransformer) -> bool:
    return model.attn_pool is None and model.global_pool == 'avg'


def _check_prompts(model: VisionTransformer, pooled: bool) -> None:
    if pooled and not _pools(model):
        raise ValueError(f"pool_prompts=True needs global_pool='avg', the model has {model.global_pool!r}")


def _embed_parameters(model: VisionTransformer) -> Tuple[Tensor, Optional[Tensor]]:
    embed = model.patch_embed
    owner = embed.proj if isinstance(embed.norm, nn.Identity) else embed.norm
    return owner.weight, owner.bias


def _fold_embed_shift(model: VisionTransformer, shift: Tensor) -> Tuple[Tensor, Tensor]:
    if model.pos_embed is None:
        raise ValueError('pos_embed is None: a shift after the bias-less patch embedding has no place to go')
    return table_with_shift(model.pos_embed, 0 if model.no_embed_class else model.num_prefix_tokens, shift)


def _final_norm(model: VisionTransformer) -> Optional[nn.Module]:
    return next((norm for norm in (model.norm, model.fc_norm) if not isinstance(norm, nn.Identity)), None)


class SideTimmVisionTransformer(VisionTransformer):
    """A VisionTransformer whose feature is that of a side method; the trunk runs without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.petl.side_active():
            return super().forward(x)
        return self.head(self.head_drop(self.petl.side_feature(lambda: self.forward_features(x))))


class FormTimmVisionTransformer(TimmForm, VisionTransformer):
    """A VisionTransformer as backbone."""


FAMILY = Family(
    name='timm_vit',
    points=frozenset(POINTS),
    classes={Block: SitedTimmBlock, Attention: SitedTimmAttention, PatchEmbed: SitedTimmPatchEmbed},
    sides={VisionTransformer: SideTimmVisionTransformer},
    forms={VisionTransformer: FormTimmVisionTransformer},
    blocks=lambda model: list(model.blocks),
    specs=_specs,
    embed=lambda model: model.patch_embed,
    embed_parameters=_embed_parameters,
    fold_embed_shift=_fold_embed_shift,
    final_norm=_final_norm,
    final_class=SitedTimmNorm,
    pools_prompts=_pools,
    check=_check,
    own_names=lambda model, state: state,
    check_prompts=_check_prompts,
    check_side=_check_side,
    head=('head', ),
)
