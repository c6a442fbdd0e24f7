# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's SwinTransformerV2, specialised in place: norms behind the sublayers, cosine attention."""

from dataclasses import replace
from typing import Any, List, Optional, Sequence, Tuple

import torch
from mmcv.cnn.bricks.transformer import FFN, PatchEmbed
from mmpretrain.models.backbones.swin_transformer_v2 import SwinBlockV2, SwinTransformerV2
from mmpretrain.models.utils import PatchMerging, ShiftWindowMSA, WindowMSAV2
from torch import Tensor, nn

from ..sites import BlockSpec
from . import swin
from .block import PostNormBlock
from .embed import SitedPatchEmbed
from .foreign import check_type, refuse
from .released import own_part
from .window_attention import CosineWindowProjections

# Upstream drops paths before its norms, so nothing is left to drop behind them.
_KEEP = nn.Identity()


class SitedWindowMSAV2(CosineWindowProjections, WindowMSAV2):
    """Attention inside windows: (B * windows, P + N, C) -> same shape."""

    calls_qkv = False  # type: ignore[assignment] # upstream reads its weight alone, with and without biases

    def forward(self, x: Tensor, mask: Optional[Tensor], windows: Sequence[int], shifted: bool, tokens: int,
                prompts: Optional[Tensor]) -> Tensor:
        """As :meth:`CosineWindowProjections.inside`: (B * windows, P + N, C) -> same shape."""
        return self.inside(x, mask, windows, (shifted, shifted), tokens, prompts)


class SitedSwinBlockV2(swin.SwinParts, PostNormBlock, SwinBlockV2):
    """Block of mmpretrain's SwinTransformerV2: (B, P + H*W, C) -> same shape."""

    # Keys are brought to length one behind the bias.
    key_bias_cancels = False

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """h (B, P + H * W, C) -> same shape; the context is (H, W)."""
        return self.attn.drop(self.attn(h, context[0], prompts))

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.ffn.dropout_layer(super().feed_forward(h))

    def leave(self, x: Tensor) -> Tensor:
        """A third norm closes every sixth block of the largest models, (B, N, C) -> (B, N, C)."""
        return self.norm3(x) if self.extra_norm else x

    def drop_path_of(self, sub: str) -> nn.Module:
        return _KEEP


class SitedPatchMergingV2(PatchMerging):
    """Patch merging, norm last, that takes prompts along: a prompt is merged with three copies of itself."""

    def forward(self, x: Tensor, input_size: Tuple[int, int]) -> Tuple[Tensor, Tuple[int, int]]:
        """x (B, P + H * W, C), (H, W) -> (B, P + H' * W', C') and (H', W')."""
        tokens = x.shape[1] - input_size[0] * input_size[1]
        merged, size = super().forward(x[:, tokens:], input_size)
        if not tokens:
            return merged, size
        # As Swin's: the four copies of a channel stand side by side.
        prompts = self.norm(self.reduction(x[:, :tokens].repeat_interleave(4, -1)))
        return torch.cat([prompts, merged], 1), size


def _check(model: SwinTransformerV2) -> None:
    for s, stage in enumerate(model.stages):
        merging = stage.downsample
        if merging is not None and not (merging.use_post_norm and merging.norm is not None):
            refuse(f'stages.{s}.downsample', merging, 'its norm is expected behind its layer')
        for i, block in enumerate(stage.blocks):
            path = f'stages.{s}.blocks.{i}'
            check_type(f'{path}.attn.w_msa', block.attn.w_msa, WindowMSAV2, SitedWindowMSAV2)
            check_type(f'{path}.ffn', block.ffn, FFN)
            if block.ffn.num_fcs != 2 or block.ffn.add_identity:
                refuse(f'{path}.ffn', block.ffn, 'only two layers without an identity of their own are known')


def _specs(model: SwinTransformerV2) -> List[BlockSpec]:
    patch = tuple(model.patch_embed.projection.kernel_size)
    specs: List[BlockSpec] = []
    height, width = model.patch_resolution
    for s, stage in enumerate(model.stages):
        if stage.downsample is not None:
            # Patch merging pads odd maps.
            height, width = -(-height // 2), -(-width // 2)
        for block in stage.blocks:
            specs.append(
                swin.spec_of(block, len(specs), s, stage.out_channels, (height, width), patch, key_bias=False,
                             post_norm=True))
    return specs


FAMILY = replace(
    swin.FAMILY,
    name='swin_v2',
    classes={
        SwinBlockV2: SitedSwinBlockV2,
        ShiftWindowMSA: swin.SitedShiftWindowMSA,
        WindowMSAV2: SitedWindowMSAV2,
        PatchMerging: SitedPatchMergingV2,
        PatchEmbed: SitedPatchEmbed
    },
    specs=_specs,
    check=_check,
    own_names=own_part,
)


def build(**kwargs: Any) -> SwinTransformerV2:
    """mmpretrain's SwinTransformerV2."""
    return SwinTransformerV2(**kwargs)
