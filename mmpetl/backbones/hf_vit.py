# SPDX-License-Identifier: Apache-2.0
"""ViTModel, DeiTModel, ViTMSNModel, IJepaModel, Dinov2Model, Dinov2WithRegistersModel and VivitModel of transformers,
specialised in place."""

from typing import List, Optional, Tuple

from torch import Tensor, nn
from transformers.models.deit import modeling_deit as deit
from transformers.models.dinov2 import modeling_dinov2 as dinov2
from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers as registers
from transformers.models.ijepa import modeling_ijepa as ijepa
from transformers.models.vit import modeling_vit as vit
from transformers.models.vit_msn import modeling_vit_msn as msn
from transformers.models.vivit import modeling_vivit as vivit

from ..sites import ALL_OPS, CLIP_POINTS, OPS, POINTS, BlockSpec
from .block import gated_feed_forward
from .embed import SitedFinalNorm
from .family import Family
from .foreign import check_type, sited
from .hf import (
    HFAttention,
    HFForm,
    HFLayer,
    HFPatchEmbed,
    HFSide,
    NamedNorms,
    frames_first,
    no_pooled_prompts,
    own_names,
    specs_of,
)


class PlainLayer(NamedNorms, HFLayer):
    """Norms of ViTModel's names, dropout at the end of each branch."""

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.dropout


class ScaledLayer(HFLayer):
    """LayerScale and drop-path, as in DINOv2."""

    def scaled(self, sub: str, y: Tensor) -> Tensor:
        """LayerScale: y (B, N, C) -> (B, N, C)."""
        return (self.layer_scale1 if sub == 'attn' else self.layer_scale2)(y)

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path

    def feed_forward(self, h: Tensor) -> Tensor:
        """Plain or gated network, (B, N, C) -> (B, N, C)."""
        mlp = self.mlp
        # DINOv2-giant has gated networks, the smaller ones plain ones.
        if type(mlp) not in _GATED:
            return super().feed_forward(h)
        gate, fc1 = (self.op_parameters(op) for op in ('gate', 'fc1'))
        return self.scaled('ffn', gated_feed_forward(self.tap, gate, fc1, mlp.act_fn, _KEEP, mlp.down_proj, h))

    def op_parameters(self, op: str) -> Tuple[Tensor, Optional[Tensor]]:
        """Weight (Cout, Cin) and bias (Cout) of one op."""
        if type(self.mlp) not in _GATED or op not in _GATED_LAYERS:
            return super().op_parameters(op)
        linear = getattr(self.mlp, _GATED_LAYERS[op])
        return linear.weight, linear.bias


_PLAIN = (vit.ViTMLP, deit.DeiTMLP, msn.ViTMSNMLP, ijepa.IJepaMLP, vivit.VivitMLP, dinov2.Dinov2MLP,
          registers.Dinov2WithRegistersMLP)
_GATED = (dinov2.Dinov2SwiGLUFFN, registers.Dinov2WithRegistersSwiGLUFFN)
_GATED_LAYERS = dict(gate='gate_proj', fc1='up_proj', fc2='down_proj')
_KEEP = nn.Identity()


def _blocks(model: nn.Module) -> List[nn.Module]:
    # Some of these models hold their layers themselves, others in an encoder.
    return list(model.layers if hasattr(model, 'layers') else model.encoder.layer)


def _check(model: nn.Module) -> None:
    name = 'layers' if hasattr(model, 'layers') else 'encoder.layer'
    for i, layer in enumerate(_blocks(model)):
        check_type(f'{name}.{i}.mlp', layer.mlp, *_PLAIN, *_GATED)


def _specs(model: nn.Module) -> List[BlockSpec]:
    blocks = _blocks(model)
    gated = type(blocks[0].mlp) in _GATED
    # Only some of these models have registers or a second token, and IJepaModel has no token but the grid's.
    tokens = model.config.num_register_tokens if hasattr(model.embeddings, 'register_tokens') else 0
    tokens += sum(hasattr(model.embeddings, name) for name in ('cls_token', 'distillation_token'))
    return specs_of(
        model.config,
        blocks,
        # From the layer: the config's ratio is rounded for gated networks.
        ffn_dim=(blocks[0].mlp.down_proj if gated else blocks[0].mlp.fc2).in_features,
        ops=ALL_OPS if gated else OPS,
        extra_tokens=tokens,
        key_bias=model.config.qkv_bias)


def _embed_parameters(model: nn.Module) -> Tuple[Tensor, Optional[Tensor]]:
    projection = model.embeddings.patch_embeddings.projection
    return projection.weight, projection.bias


_MODELS = (vit.ViTModel, deit.DeiTModel, msn.ViTMSNModel, ijepa.IJepaModel, dinov2.Dinov2Model,
           registers.Dinov2WithRegistersModel, vivit.VivitModel)
FAMILY = Family(
    name='hf_vit',
    points=frozenset(POINTS) - CLIP_POINTS,
    classes={
        **sited(globals(), 'Sited', PlainLayer, vit.ViTLayer, deit.DeiTLayer, msn.ViTMSNLayer, ijepa.IJepaLayer,
                vivit.VivitLayer),
        **sited(globals(), 'Sited', ScaledLayer, dinov2.Dinov2Layer, registers.Dinov2WithRegistersLayer),
        **sited(globals(), 'Sited', HFAttention, vit.ViTAttention, deit.DeiTAttention, msn.ViTMSNAttention,
                ijepa.IJepaAttention, vivit.VivitAttention, dinov2.Dinov2Attention,
                registers.Dinov2WithRegistersAttention),
        **sited(globals(), 'Sited', HFPatchEmbed, vit.ViTPatchEmbeddings, deit.DeiTPatchEmbeddings,
                msn.ViTMSNPatchEmbeddings, ijepa.IJepaPatchEmbeddings, vivit.VivitTubeletEmbeddings,
                dinov2.Dinov2PatchEmbeddings, registers.Dinov2WithRegistersPatchEmbeddings),
    },
    sides=sited(globals(), 'Side', HFSide, *_MODELS),
    forms=sited(globals(), 'Form', HFForm, *_MODELS),
    blocks=_blocks,
    specs=_specs,
    embed=lambda model: model.embeddings.patch_embeddings,
    embed_parameters=_embed_parameters,
    final_norm=lambda model: model.layernorm,
    final_class=SitedFinalNorm,
    check=_check,
    own_names=own_names,
    check_prompts=no_pooled_prompts,
    clip_axes=frames_first,
)
