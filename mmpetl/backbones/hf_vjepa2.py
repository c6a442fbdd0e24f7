# SPDX-License-Identifier: Apache-2.0
"""VJEPA2Model of transformers: its encoder, with rotary embeddings over frames, rows and columns; specialised in place.

The predictor stays as it is, and frozen.
"""

from math import prod
from typing import Any, List, Optional, Tuple

from torch import Tensor, nn
from transformers.models.vjepa2 import modeling_vjepa2 as vjepa2

from ..sites import CLIP_POINTS, POINTS, BlockSpec
from .attention import Rotation
from .foreign import check_type, gelu_network, no_mask, rotate_grid, sited
from .form import Form
from .hf import HFAttention, HFForm, HFLayer, HFPatchEmbed, frames_first, tower_family


class RotaryAttention(HFAttention):
    """Attention of the encoder."""

    LAYERS = dict(q='query', k='key', v='value', proj='proj')

    @property
    def proj(self) -> nn.Linear:
        return self._modules['proj']

    @property
    def attention_drop_rate(self) -> float:
        return self.dropout_prob

    def layer(self, op: str) -> nn.Linear:
        return self._modules[self.LAYERS[op]]

    def rotation(self, *context: Any) -> Optional[Rotation]:
        # All tokens are grid tokens, but prompts may stand in front.
        tokens = prod(self.tap.grid)

        def turn(x: Tensor) -> Tensor:
            # Upstream reads the number of tokens off a tensor without heads.
            return self.apply_rotary_embeddings(x, self.get_position_ids(x[:, 0]))

        return rotate_grid(turn, tokens)


class RotaryLayer(HFLayer):
    """Layer of the encoder; returns attention weights that are never formed as None."""

    # A rotation comes after the bias, by another angle for every key.
    key_bias_cancels = False

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return gelu_network(self.tap, self.mlp.fc1, self.mlp.activation, self.mlp.fc2, h)

    def forward(self, hidden_states: Tensor, position_mask: Optional[Tensor] = None,
                **kwargs: Any) -> Tuple[Tensor, None]:
        """hidden_states (B, N, C) -> (B, N, C) and None."""
        no_mask(position_mask, self)
        return self.run(hidden_states), None


class TubeletEmbed(HFPatchEmbed):
    """Tubelet embedding: the clip arrives as (B, 3, T, H, W)."""

    def forward(self, pixel_values_videos: Tensor) -> Tensor:
        """pixel_values_videos (B, 3, T, H, W) -> (B, N, C)."""
        # A single picture is repeated to fill a tubelet before it comes here.
        self.tap.run_time.grid = tuple(s // k for s, k in zip(pixel_values_videos.shape[2:], self.proj.kernel_size))
        return self.tap.norm('embed', super(HFPatchEmbed, self).forward(pixel_values_videos))


class EncoderForm(HFForm):
    """The predictor is left out."""

    def tower(self, x: Tensor) -> Any:
        """x (B, T, 3, H, W) -> the encoder's outputs."""
        return super(Form, self).forward(x, skip_predictor=True)


def _check(model: nn.Module) -> None:
    for i, layer in enumerate(model.encoder.layer):
        check_type(f'encoder.layer.{i}.mlp', layer.mlp, vjepa2.VJEPA2MLP)


def _specs(model: nn.Module) -> List[BlockSpec]:
    config = model.config
    size = config.crop_size // config.patch_size
    return [
        BlockSpec(
            index=i,
            stage=0,
            dim=config.hidden_size,
            heads=config.num_attention_heads,
            ffn_dim=layer.mlp.fc1.out_features,
            grid=(config.frames_per_clip // config.tubelet_size, size, size),
            patch=(config.tubelet_size, config.patch_size, config.patch_size),
            key_bias=config.qkv_bias) for i, layer in enumerate(model.encoder.layer)
    ]


def _embed(model: nn.Module) -> nn.Module:
    return model.encoder.embeddings.patch_embeddings


FAMILY = tower_family(
    name='hf_vjepa2',
    points=frozenset(POINTS) - CLIP_POINTS - {'side'},
    classes={
        **sited(globals(), 'Sited', RotaryLayer, vjepa2.VJEPA2Layer),
        **sited(globals(), 'Sited', RotaryAttention, vjepa2.VJEPA2RopeAttention),
        **sited(globals(), 'Sited', TubeletEmbed, vjepa2.VJEPA2PatchEmbeddings3D),
    },
    # The predictor has layers of the same class, which must stay as they are.
    scope=lambda model: model.encoder,
    forms=sited(globals(), 'Form', EncoderForm, vjepa2.VJEPA2Model),
    specs=_specs,
    embed=_embed,
    embed_parameters=lambda model: (_embed(model).proj.weight, _embed(model).proj.bias),
    final_norm=lambda model: model.encoder.layernorm,
    check=_check,
    clip_axes=frames_first,
)
