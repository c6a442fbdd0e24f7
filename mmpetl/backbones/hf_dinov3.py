# SPDX-License-Identifier: Apache-2.0
"""DINOv3ViTModel and DINOv3ViTBackbone of transformers: rotary embeddings, registers, gated feed-forward networks;
specialised in place."""

from typing import Any, List, Optional, Tuple

from torch import Tensor, nn
from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3

from ..sites import ALL_OPS, CLIP_POINTS, OPS, POINTS, BlockSpec
from .attention import Rotation
from .block import Linear, gated_feed_forward, of_linear
from .foreign import PatchConvolution, check_type, gelu_network, no_mask, rotate_grid, sited
from .hf import HFAttention, HFForm, HFLayer, check_prompts, specs_of, tower_family

_KEEP = nn.Identity()


class RotaryAttention(HFAttention):
    """Attention of DINOv3ViTModel."""

    @property
    def heads(self) -> int:
        return self.num_heads

    @property
    def attention_drop_rate(self) -> float:
        return self.dropout

    def rotation(self, *context: Any) -> Optional[Rotation]:
        # Made once per input by the model and handed from layer to layer.
        cos, sin = context[0]
        return rotate_grid(lambda x: x * cos + dinov3.rotate_half(x) * sin, sin.shape[-2])


class RotaryLayer(HFLayer):
    """Layer of DINOv3ViTModel."""

    # A rotation comes after the bias, by another angle for every key.
    key_bias_cancels = False

    def scaled(self, sub: str, y: Tensor) -> Tensor:
        """LayerScale: y (B, N, C) -> (B, N, C)."""
        return (self.layer_scale1 if sub == 'attn' else self.layer_scale2)(y)

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path

    def feed_forward(self, h: Tensor) -> Tensor:
        """Plain or gated network, (B, N, C) -> (B, N, C)."""
        mlp = self.mlp
        if type(mlp) is dinov3.DINOv3ViTMLP:
            return self.scaled('ffn', gelu_network(self.tap, mlp.up_proj, mlp.act_fn, mlp.down_proj, h))
        gate, fc1 = (self.op_parameters(op) for op in ('gate', 'fc1'))
        return self.scaled('ffn', gated_feed_forward(self.tap, gate, fc1, mlp.act_fn, _KEEP, mlp.down_proj, h))

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return of_linear(getattr(self.mlp, dict(fc1='up_proj', fc2='down_proj', gate='gate_proj')[op]))

    def forward(self, hidden_states: Tensor, attention_mask: Optional[Tensor] = None,
                position_embeddings: Optional[Tuple[Tensor, Tensor]] = None, **kwargs: Any) -> Tensor:
        """hidden_states (B, N, C), cosines and sines (tokens, head_dim) -> (B, N, C)."""
        no_mask(attention_mask, self)
        return self.run(hidden_states, position_embeddings)


def _check(model: nn.Module) -> None:
    for i, layer in enumerate(model.model.layer):
        check_type(f'model.layer.{i}.mlp', layer.mlp, dinov3.DINOv3ViTMLP, dinov3.DINOv3ViTGatedMLP)


def _specs(model: nn.Module) -> List[BlockSpec]:
    config = model.config
    return specs_of(
        config,
        list(model.model.layer),
        config.intermediate_size,
        # Class token and registers stand in front and are not rotated.
        extra_tokens=1 + config.num_register_tokens,
        key_bias=config.key_bias,
        ops=ALL_OPS if config.use_gated_mlp else OPS)


FAMILY = tower_family(
    name='hf_dinov3',
    # Side methods read keys of bare projections; here they are rotated first.
    points=frozenset(POINTS) - CLIP_POINTS - {'side'},
    classes={
        **sited(globals(), 'Sited', RotaryLayer, dinov3.DINOv3ViTLayer),
        **sited(globals(), 'Sited', RotaryAttention, dinov3.DINOv3ViTAttention),
        nn.Conv2d: PatchConvolution,
    },
    forms=sited(globals(), 'Form', HFForm, dinov3.DINOv3ViTModel),
    blocks=lambda model: list(model.model.layer),
    specs=_specs,
    embed_parameters=lambda model: (model.embeddings.patch_embeddings.weight, model.embeddings.patch_embeddings.bias),
    final_norm=lambda model: model.norm,
    check=_check,
    check_prompts=check_prompts,
)
