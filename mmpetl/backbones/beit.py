# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's BEiTViT (BEiT, BEiT v2), specialised in place: biases of places, LayerScale, no bias of the keys."""

from dataclasses import replace
from typing import Any, Optional, Tuple

from mmcv.cnn.bricks.transformer import FFN, PatchEmbed
from mmpretrain.models.backbones.beit import BEiTTransformerEncoderLayer, BEiTViT
from mmpretrain.models.utils import BEiTAttention
from torch import Tensor, nn

from ..recompute import LOOK_UP, recomputed
from ..sites import CLIP_POINTS
from . import vit
from .attention import SplitBias, relative_position_bias
from .block import Linear, SitedBlock, feed_forward, of_ffn
from .embed import SitedEntry, SitedPatchEmbed
from .foreign import ForeignAttention, check_type, refuse, table_with_shift
from .released import with_shared_biases


class SitedBEiTAttention(SplitBias, ForeignAttention, BEiTAttention):
    """(B, N, C) -> (B, N, C), with a bias of every pair of places that is the block's own or shared by all blocks."""

    def place_bias(self, *context: Any) -> Optional[Tensor]:
        """(h, N, N) or None; the context is what all blocks share, (h, N, N) or None."""
        shared = context[0] if context else None
        if self.relative_position_bias_table is None:
            return shared
        own = recomputed(
            relative_position_bias, self.relative_position_bias_table, self.relative_position_index, level=LOOK_UP)
        return own if shared is None else own + shared

    def forward(self, x: Tensor, rel_pos_bias: Optional[Tensor] = None, prompts: Optional[Tensor] = None) -> Tensor:
        """x (B, N, C), rel_pos_bias (h, N, N) or None, prompts as keys and values only (1 or B, P, C) -> (B, N, C)."""
        return self.proj_drop(self.output(self.mix(x, prompts, rel_pos_bias)))


class SitedBEiTLayer(SitedBlock, BEiTTransformerEncoderLayer):
    """Block of mmpretrain's BEiTViT."""

    # A bias of (heads, N, N) for every block is looked up from a small table.
    least_level = LOOK_UP

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """(B, N, C) -> (B, N, C); the context is the bias that all blocks share, or None."""
        return self._scaled(self.gamma_1, self.attn(h, context[0], prompts))

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        (fc1, act, drop1), fc2, drop2 = self.ffn.layers
        y = feed_forward(self.tap, fc1, act, drop1, fc2, drop2, h)
        # Upstream drops paths here, and once more behind the scale.
        return self._scaled(self.gamma_2, self.ffn.dropout_layer(self.ffn.gamma2(y)))

    @staticmethod
    def _scaled(gamma: Optional[Tensor], y: Tensor) -> Tensor:
        return y if gamma is None else gamma * y

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return of_ffn(self.ffn, op)

    def forward(self, x: Tensor, rel_pos_bias: Optional[Tensor] = None) -> Tensor:
        """x (B, N, C), rel_pos_bias (h, N, N) or None -> (B, N, C)."""
        return self.run(x, rel_pos_bias)


def _check(model: BEiTViT) -> None:
    for i, layer in enumerate(model.layers):
        check_type(f'layers.{i}.ffn', layer.ffn, FFN)
        if layer.ffn.num_fcs != 2 or layer.ffn.add_identity:
            refuse(f'layers.{i}.ffn', layer.ffn, 'only two layers without an identity of their own are known')
    if model.cls_token is None and (model.use_rel_pos_bias or model.rel_pos_bias is not None):
        refuse('layers.0.attn', model.layers[0].attn, 'its biases count a class token, which the model does not have')


def _fold_embed_shift(model: BEiTViT, shift: Tensor) -> Tuple[Tensor, Tensor]:
    if model.pos_embed is None:
        raise ValueError('pos_embed is None: a shift after the bias-less patch embedding has no place to go')
    return table_with_shift(model.pos_embed, model.num_extra_tokens, shift)


FAMILY = replace(
    vit.FAMILY,
    name='beit',
    # Side methods attend without places; here every pair of places has a bias.
    points=vit.FAMILY.points - CLIP_POINTS - {'side'},
    classes={
        BEiTTransformerEncoderLayer: SitedBEiTLayer,
        BEiTAttention: SitedBEiTAttention,
        PatchEmbed: SitedPatchEmbed
    },
    entry_class=SitedEntry,
    tokens_read=lambda model: None,
    sides={},
    clips={},
    fold_embed_shift=_fold_embed_shift,
    arch_of=None,
    check=_check,
    own_names=with_shared_biases,
)


def build(arch: Any = 'base', **kwargs: Any) -> BEiTViT:
    """mmpretrain's BEiTViT."""
    return BEiTViT(arch=arch, **kwargs)
