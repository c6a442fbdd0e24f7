# SPDX-License-Identifier: Apache-2.0
"""ViTModel, DeiTModel, ViTMSNModel, IJepaModel, Dinov2Model, Dinov2WithRegistersModel and VivitModel of transformers,
specialised in place; also Dinov2Backbone and Dinov2WithRegistersBackbone, which hand out maps of several layers."""

from typing import List

from torch import Tensor, nn
from transformers.models.deit import modeling_deit as deit
from transformers.models.dinov2 import modeling_dinov2 as dinov2
from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers as registers
from transformers.models.ijepa import modeling_ijepa as ijepa
from transformers.models.vit import modeling_vit as vit
from transformers.models.vit_msn import modeling_vit_msn as msn
from transformers.models.vivit import modeling_vivit as vivit

from ..sites import ALL_OPS, OPS, BlockSpec
from .block import Linear, gated_feed_forward, of_linear
from .foreign import check_type, sited
from .hf import (
    HFAttention,
    HFForm,
    HFLayer,
    HFPatchEmbed,
    HFSide,
    NamedNorms,
    check_prompts,
    frames_first,
    specs_of,
    tower_family,
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

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        if type(self.mlp) not in _GATED:
            return super().ffn_parameters(op)
        return of_linear(getattr(self.mlp, _GATED_LAYERS[op]))


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


_MODELS = (vit.ViTModel, deit.DeiTModel, msn.ViTMSNModel, ijepa.IJepaModel, dinov2.Dinov2Model,
           registers.Dinov2WithRegistersModel, vivit.VivitModel)
FAMILY = tower_family(
    name='hf_vit',
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
    check=_check,
    check_prompts=check_prompts,
    clip_axes=frames_first,
)
