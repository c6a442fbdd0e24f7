# SPDX-License-Identifier: Apache-2.0
"""timm's SwinTransformer and SwinTransformerV2, specialised in place.

timm hands maps (B, H, W, C) from block to block, in which there is no room for prompts: those of each block act as keys
and values only, and every block brings its own.
"""

from typing import List, Tuple

from timm.layers import ClassifierHead, Mlp, PatchEmbed
from timm.models import swin_transformer as v1
from timm.models import swin_transformer_v2 as v2
from torch import Tensor, nn

from ..sites import CLIP_POINTS, POINTS, BlockSpec
from .block import Linear, PostNormBlock
from .family import Family, maps_have_no_prompts
from .foreign import check_type, refuse
from .form import TimmForm
from .timm_parts import SitedTimmNorm, SitedTimmPatchEmbed, check_mlp, embed_parameters, mlp_parameters, run_mlp
from .window_attention import CosineWindowProjections, WindowBlock, WindowProjections
from .windows import Size


class SitedWindowAttention(WindowProjections, v1.WindowAttention):
    """Attention of SwinTransformer."""


class SitedWindowAttentionV2(CosineWindowProjections, v2.WindowAttention):
    """Attention of SwinTransformerV2."""

    @property
    def calls_qkv(self) -> bool:  # type: ignore[override]
        return self.q_bias is None or self.qkv_bias_separate


class MapBlock(WindowBlock):
    """Mixin: block of timm's Swins, (B, H, W, C) -> same shape; methods see (B, H * W, C)."""

    roll_first = True

    def window_of(self, grid: Size) -> Tuple[Size, Size]:
        """Window and cyclic shift over a grid (H, W)."""
        return tuple(self.window_size), tuple(self.shift_size)

    def mask_of(self, h: Tensor, padded: Size, size: Size, shift: Size) -> Tensor:
        """Shift mask (windows, N, N) of h (B, H * W, C)."""
        # With a dynamic input size upstream makes it anew for every input; it reads shape and type alone.
        return self.get_attn_mask(h.new_empty(1, *padded, 1)) if getattr(self, 'dynamic_mask',
                                                                         False) else self.attn_mask

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, H * W, C) -> same shape."""
        return run_mlp(self.tap, self.mlp, h)

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path1 if sub == 'attn' else self.drop_path2

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return mlp_parameters(self.mlp, op)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> same shape."""
        grid = tuple(x.shape[1:3])
        return self.run(x.flatten(1, 2), grid).unflatten(1, grid)


class SitedSwinTransformerBlock(MapBlock, v1.SwinTransformerBlock):
    """Block of timm's SwinTransformer."""


class SitedSwinTransformerV2Block(MapBlock, PostNormBlock, v2.SwinTransformerV2Block):
    """Block of timm's SwinTransformerV2."""

    # Keys are brought to length one behind the bias.
    key_bias_cancels = False


def _blocks(model: nn.Module) -> List[nn.Module]:
    return [block for layer in model.layers for block in layer.blocks]


def _check(model: nn.Module) -> None:
    check_type('patch_embed', model.patch_embed, PatchEmbed)
    check_type('head', model.head, ClassifierHead)
    for s, layer in enumerate(model.layers):
        for i, block in enumerate(layer.blocks):
            path = f'layers.{s}.blocks.{i}'
            check_type(f'{path}.mlp', block.mlp, Mlp)
            check_mlp(f'{path}.mlp', block.mlp)
            width = block.attn.proj.in_features
            if width != block.dim:
                refuse(f'{path}.attn', block.attn, f'its heads are {width} wide together, the stream {block.dim}')


def _specs(model: nn.Module) -> List[BlockSpec]:
    after = isinstance(model, v2.SwinTransformerV2)
    return [
        BlockSpec(
            index=i,
            stage=s,
            dim=block.dim,
            heads=block.attn.num_heads,
            ffn_dim=block.mlp.fc2.in_features,
            grid=tuple(block.input_resolution),
            window=tuple(block.window_size),
            patch=tuple(model.patch_embed.patch_size),
            key_bias=block.attn.qkv.bias is not None,
            post_norm=after)
        for i, (s, block) in enumerate((s, b) for s, layer in enumerate(model.layers) for b in layer.blocks)
    ]


class SwinForm(TimmForm):
    """Mixin: a Swin of timm as backbone."""

    def feature(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> (B, C), (B, H' * W', C) for 'raw', (B, C, H', W') for 'featmap'."""
        grid = self.forward_features(x)
        if self.out_type == 'pooled':
            return self.forward_head(grid, pre_logits=True)
        if self.out_type == 'avg_featmap':
            return grid.mean((1, 2))
        return grid.flatten(1, 2) if self.out_type == 'raw' else grid.movedim(-1, 1)


class FormSwinTransformer(SwinForm, v1.SwinTransformer):
    """SwinTransformer as backbone."""


class FormSwinTransformerV2(SwinForm, v2.SwinTransformerV2):
    """SwinTransformerV2 as backbone."""


FAMILY = Family(
    name='timm_swin',
    # Side methods need blocks of one width.
    points=frozenset(POINTS) - CLIP_POINTS - {'side'},
    global_attention=False,
    classes={
        v1.SwinTransformerBlock: SitedSwinTransformerBlock,
        v1.WindowAttention: SitedWindowAttention,
        v2.SwinTransformerV2Block: SitedSwinTransformerV2Block,
        v2.WindowAttention: SitedWindowAttentionV2,
        PatchEmbed: SitedTimmPatchEmbed
    },
    forms={v1.SwinTransformer: FormSwinTransformer, v2.SwinTransformerV2: FormSwinTransformerV2},
    blocks=_blocks,
    specs=_specs,
    embed=lambda model: model.patch_embed,
    embed_parameters=embed_parameters,
    final_norm=lambda model: model.norm,
    final_class=SitedTimmNorm,
    check=_check,
    check_prompts=maps_have_no_prompts,
    own_names=lambda model, state: state,
    head=('head', ),
)
