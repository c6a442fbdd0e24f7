# SPDX-License-Identifier: Apache-2.0
"""CLIPVisionModel and SiglipVisionModel of transformers, specialised in place."""

from typing import List, Optional, Tuple

from torch import Tensor, nn
from transformers.models.clip import modeling_clip as clip
from transformers.models.siglip import modeling_siglip as siglip

from ..sites import BlockSpec
from .foreign import PatchConvolution, check_type, sited, table_with_shift
from .hf import HFAttention, HFForm, HFLayer, HFSide, specs_of, tower_family


class TowerAttention(HFAttention):
    """Attention of CLIP and SigLIP."""

    LAYERS = dict(q='q_proj', k='k_proj', v='v_proj', proj='out_proj')

    @property
    def heads(self) -> int:
        return self.num_heads

    @property
    def logit_scale(self) -> Optional[float]:
        return self.scale

    @property
    def attention_drop_rate(self) -> float:
        return self.dropout


class TowerLayer(HFLayer):
    """Layer of CLIP and SigLIP: nothing is dropped."""

    @property
    def norm1(self) -> nn.Module:
        return self.layer_norm1

    @property
    def norm2(self) -> nn.Module:
        return self.layer_norm2

    def attention_module(self) -> nn.Module:
        return self.self_attn

    def drop_path_of(self, sub: str) -> nn.Module:
        return _KEEP


# These layers have no drop-path; the block asks for one.
_KEEP = nn.Identity()


def _extra_tokens(model: nn.Module) -> int:
    # SigLIP has no class token.
    return 1 if hasattr(model.embeddings, 'class_embedding') else 0


def _check(model: nn.Module) -> None:
    for i, layer in enumerate(model.encoder.layers):
        # The network is called through its parts, so it must be one of those whose parts are known.
        check_type(f'encoder.layers.{i}.mlp', layer.mlp, clip.CLIPMLP, siglip.SiglipMLP)
        check_type(f'encoder.layers.{i}.self_attn', layer.self_attn, clip.CLIPAttention, siglip.SiglipAttention)


def _specs(model: nn.Module) -> List[BlockSpec]:
    config = model.config
    return specs_of(config, list(model.encoder.layers), config.intermediate_size, extra_tokens=_extra_tokens(model))


def _embed_parameters(model: nn.Module) -> Tuple[Tensor, Optional[Tensor]]:
    return model.embeddings.patch_embedding.weight, model.embeddings.patch_embedding.bias


def _fold_embed_shift(model: nn.Module, shift: Tensor) -> Tuple[Tensor, Tensor]:
    return table_with_shift(model.embeddings.position_embedding.weight, _extra_tokens(model), shift)


_MODELS = (clip.CLIPVisionModel, siglip.SiglipVisionModel)
FAMILY = tower_family(
    name='hf_clip',
    classes={
        **sited(globals(), 'Sited', TowerLayer, clip.CLIPEncoderLayer, siglip.SiglipEncoderLayer),
        **sited(globals(), 'Sited', TowerAttention, clip.CLIPAttention, siglip.SiglipAttention),
        # The only convolution of these towers is the patch embedding.
        nn.Conv2d: PatchConvolution,
    },
    sides=sited(globals(), 'Side', HFSide, *_MODELS),
    forms=sited(globals(), 'Form', HFForm, *_MODELS),
    blocks=lambda model: list(model.encoder.layers),
    specs=_specs,
    embed=lambda model: model.embeddings.patch_embedding,
    embed_parameters=_embed_parameters,
    fold_embed_shift=_fold_embed_shift,
    final_norm=lambda model: model.post_layernorm,
    check=_check,
)
