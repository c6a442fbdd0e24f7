# SPDX-License-Identifier: Apache-2.0
"""mmaction2's VisionTransformer (VideoMAE), specialised in place."""

from typing import Any, List, Optional, Tuple

from mmaction.models.backbones.vit_mae import Attention, Block, VisionTransformer
from mmcv.cnn.bricks.transformer import PatchEmbed
from torch import Tensor, nn

from ..sites import CLIP_POINTS, POINTS, BlockSpec
from .attention import SplitBias, attend, gate_bias, join_extra, record_keys_values, split_heads
from .block import Linear, SitedBlock, feed_forward, of_ffn
from .cast import apply_linear
from .embed import SitedFinalNorm, SitedPatchEmbed
from .family import Family


class SitedAttention(SplitBias, Attention):
    """(B, N, C) -> (B, N, C). Biases of q and v only; scaled-dot-product attention instead of an explicit softmax."""

    calls_qkv = False  # upstream reads its weight alone, with and without biases

    def keys_values(self, u: Tensor) -> Tuple[Tensor, Tensor]:
        """Frozen keys and values of normed tokens u (B, N, C), both (B, heads, N, head_dim)."""
        k, v = self.keys_and_values(u).chunk(2, -1)
        return split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def forward(self, x: Tensor, prompts: Optional[Tensor] = None) -> Tensor:
        """x (B, N, C), prompts as keys and values only (1 or B, P, C) -> (B, N, C)."""
        q, k, v, inner, joined = self.project_with(x, prompts)
        record_keys_values(self.tap, k, v, self.num_heads)
        extra = join_extra(self.tap, inner, self.num_heads)
        keys = k.shape[1] + (0 if extra is None else extra[0].shape[-2])
        # Prompts come first among extra keys; in the stream they stand in front of the grid, as there is no
        # class token.
        start = 0 if inner is not None else keys - k.shape[1]
        drop_rate = self.attn_drop.p if self.training else 0.
        y = attend(q, k, v, self.num_heads, extra, gate_bias(self.tap, keys, start), drop_rate, self.scale,
                   channels=self.tap.channels(x.shape[1]))
        return self.proj_drop(self.output(y))


class SitedVideoBlock(SitedBlock, Block):
    """Block of mmaction2's VisionTransformer."""

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        y = self.attn(h, prompts)
        return self.gamma_1 * y if hasattr(self, 'gamma_1') else y

    def attention_output(self, y: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        y = apply_linear(self.attn.proj, self.tap, 'proj', y)
        return self.gamma_1 * y if hasattr(self, 'gamma_1') else y

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        (fc1, act, drop1), fc2, drop2 = self.mlp.layers
        y = feed_forward(self.tap, fc1, act, drop1, fc2, drop2, h)
        return self.gamma_2 * y if hasattr(self, 'gamma_2') else y

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return of_ffn(self.mlp, op)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> (B, N, C)."""
        return self.run(x)


def _specs(model: VisionTransformer) -> List[BlockSpec]:
    patch = tuple(model.patch_embed.projection.kernel_size)
    # The grid in time stands nowhere else: upstream keeps height and width only.
    tokens = model.pos_embed.shape[1]
    grid = (tokens // (model.grid_size[0] * model.grid_size[1]), *model.grid_size)
    return [
        BlockSpec(
            index=i, stage=0, dim=model.embed_dims, heads=block.attn.num_heads, ffn_dim=block.mlp.feedforward_channels,
            grid=grid, patch=patch, key_bias=False) for i, block in enumerate(model.blocks)
    ]


def _check_side(model: VisionTransformer) -> None:
    if model.return_feat_map:
        raise ValueError('side methods give one vector per clip, but the backbone has return_feat_map=True: '
                         'set it to False')


class SideVideoMAE(VisionTransformer):
    """A VideoMAE whose output is the feature of a side method; the base runs without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, T, H, W) -> (B, C')."""
        if not self.petl.side_active():
            return super().forward(x)
        return self.petl.side_feature(lambda: VisionTransformer.forward(self, x))


FAMILY = Family(
    name='videomae',
    points=frozenset(POINTS) - CLIP_POINTS,
    classes={Block: SitedVideoBlock, Attention: SitedAttention, PatchEmbed: SitedPatchEmbed},
    sides={VisionTransformer: SideVideoMAE},
    blocks=lambda model: list(model.blocks),
    specs=_specs,
    embed=lambda model: model.patch_embed,
    embed_parameters=lambda model: (model.patch_embed.projection.weight, model.patch_embed.projection.bias),
    # VideoMAE norms either all tokens or their mean.
    final_norm=lambda model: model.fc_norm if model.fc_norm is not None else model.norm,
    final_class=SitedFinalNorm,
    check_side=_check_side,
)


def build(**kwargs: Any) -> VisionTransformer:
    """mmaction2's VisionTransformer, which names clips of another length than its own."""
    model = VisionTransformer(**kwargs)
    # Upstream would add a table of the wrong length and fail with shapes alone.
    model.register_forward_pre_hook(_check_clip)
    return model


def _check_clip(model: VisionTransformer, inputs: Tuple[Tensor, ...]) -> None:
    """Refuse clips (B, 3, T, H, W) of another length than the position table has.

    Raises:
        ValueError: Naming both lengths and the options that set them.
    """
    shape, tubelet = inputs[0].shape, model.patch_embed.projection.kernel_size[0]
    steps = model.pos_embed.shape[1] // (model.grid_size[0] * model.grid_size[1])
    if len(shape) == 5 and shape[2] // tubelet != steps:
        raise ValueError(f'clips of {shape[2]} frames, but the backbone takes {steps * tubelet}: set clip_len of the '
                         f'sampling transforms to {steps * tubelet}, or num_frames of the backbone to {shape[2]}')
