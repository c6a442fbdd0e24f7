# SPDX-License-Identifier: Apache-2.0
"""What the vision towers of transformers share: layers, attention, outputs, and their form inside OpenMMLab models."""

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import output_capturing

from ..recompute import recomputed
from ..sites import CLIP_POINTS, POINTS, BlockSpec, Tap
from .block import Linear, SitedBlock, of_linear
from .cast import apply_linear
from .embed import SitedFinalNorm
from .family import Family, maps_have_no_prompts
from .foreign import SeparateProjections, gelu_network, no_mask
from .form import Form


def no_weights(owner: nn.Module, asked: Any = False) -> None:
    """Refuse a pass that asks for attention weights (``output_attentions``), which are never formed.

    Args:
        owner: Module that would form them.
        asked: What it was asked for itself, where the model hands the option along; most take what modules return.

    Raises:
        ValueError: If it does.
    """
    if not asked and not torch.compiler.is_compiling():  # the compiler cannot read a variable of a context
        asked = 'attentions' in (output_capturing._active_collector.get() or ())
    if asked:
        raise ValueError(f'{type(owner).__name__}: output_attentions is not supported once methods are attached; leave '
                         'it out, or merge, save_pretrained and ask the model that from_pretrained opens')


class HFAttention(SeparateProjections):
    """(B, N, C) -> (B, N, C) and None: attention weights are never formed."""

    @property
    def proj(self) -> nn.Linear:
        return self.layer('proj')

    @property
    def heads(self) -> int:
        return self.num_attention_heads

    @property
    def logit_scale(self) -> Optional[float]:
        return self.scaling

    @property
    def attention_drop_rate(self) -> float:
        return self.attention_dropout

    def forward(self, hidden_states: Tensor, prompts: Optional[Tensor] = None, *context: Any) -> Tuple[Tensor, None]:
        """hidden_states (B, N, C) -> (B, N, C) and None."""
        no_weights(self)
        # transformers unpacks an output and attention weights.
        return self.output(self.mix(hidden_states, prompts, *context)), None


class NamedNorms:
    """Mixin: norms under the names that most layers give them."""

    @property
    def norm1(self) -> nn.Module:
        return self.layernorm_before

    @property
    def norm2(self) -> nn.Module:
        return self.layernorm_after


class HFLayer(SitedBlock):
    """Layer of a vision tower. Subclasses name their parts where transformers names them otherwise."""

    @property
    def attn(self) -> nn.Module:
        return self.attention_module()

    def attention_module(self) -> nn.Module:
        """The layer's attention."""
        return self._modules['attention']

    def scaled(self, sub: str, y: Tensor) -> Tensor:
        """LayerScale of 'attn' or 'ffn', where the layer has one: y (B, N, C) -> (B, N, C)."""
        return y

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """See :class:`SitedBlock`; (B, N, C) -> (B, N, C)."""
        return recomputed(self.scaled, 'attn', self.attn(h, prompts, *context)[0])

    def attention_output(self, y: Tensor) -> Tensor:
        """See :class:`SitedBlock`; (B, N, C) -> (B, N, C)."""
        return self.scaled('attn', apply_linear(self.attn.proj, self.tap, 'proj', y))

    def feed_forward(self, h: Tensor) -> Tensor:
        """See :class:`SitedBlock`; (B, N, C) -> (B, N, C)."""
        mlp = self.mlp
        return self.scaled('ffn', gelu_network(self.tap, mlp.fc1, mlp.activation_fn, mlp.fc2, h))

    def forward(self, hidden_states: Tensor, attention_mask: Optional[Tensor] = None, **kwargs: Any) -> Tensor:
        """hidden_states (B, N, C) -> (B, N, C)."""
        # These towers take no mask from outside; while tracing, transformers makes one that hides nothing.
        if not torch.compiler.is_compiling():
            no_mask(attention_mask, self)
        return self.run(hidden_states)


class HFPatchEmbed:
    """Mixin: patch embedding with the points of the waist, pixels -> (B, N, C)."""

    tap: Tap

    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """pixel_values (B, 3, H, W) or (B, T, 3, H, W) -> (B, N, C)."""
        kernel = self.projection.kernel_size
        # Clips come as (B, T, 3, H, W).
        # From the pixels and not from the tokens, whose product does not tell height from width.
        sizes = pixel_values.shape[-2:] if len(kernel) == 2 else (pixel_values.shape[1], *pixel_values.shape[-2:])
        self.tap.run_time.grid = tuple(s // k for s, k in zip(sizes, kernel))
        return self.tap.norm('embed', super().forward(pixel_values, *args, **kwargs))


class HFSide:
    """Mixin: a tower whose outputs are the feature of a side method; the base runs without gradients.

    Class token, pooled output and mean of the patch tokens are all that feature, so heads of transformers find it where
    they look.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = super().forward
        if not self.petl.side_active():
            return run(*args, **kwargs)
        feature = self.petl.side_feature(lambda: run(*args, **kwargs))
        # One behind class token and registers, so that index 0 and the mean of the others are both the feature;
        # expanded, not copied.
        leading = max(1, self.petl.blocks[0].spec.extra_tokens)
        tokens = feature[:, None].expand(-1, leading + 1, -1)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=feature)


class HFForm(Form):
    """Mixin: a tower as backbone of an OpenMMLab model."""

    def tower(self, x: Tensor) -> Any:
        """x (B, 3, H, W), or as the tower takes clips -> upstream's outputs."""
        # Past the form, to upstream's own forward pass.
        return super(Form, self).forward(x)

    def feature(self, x: Tensor) -> Tensor:
        """x (B, 3, [T,] H, W) -> (B, C), (B, N, C) for 'raw', (B, C, [T',] H', W') for 'featmap'."""
        # OpenMMLab has (B, 3, T, H, W), these towers (B, T, 3, H, W).
        out = self.tower(x.transpose(1, 2) if x.dim() == 5 else x)
        tokens, pooled = out.last_hidden_state, out.get('pooler_output')
        if self.out_type == 'raw':
            return tokens
        if self.out_type == 'pooled' and pooled is not None:
            return pooled
        if self.out_type == 'cls_token' or (self.out_type == 'pooled' and self.first.extra_tokens):
            return tokens[:, 0]
        grid = tokens[:, self.first.extra_tokens:]
        if self.out_type in ('avg_featmap', 'pooled'):
            return grid.mean(1)
        return grid.transpose(1, 2).unflatten(2, self.map_of(x))

    def map_of(self, x: Tensor) -> Tuple[int, ...]:
        """The grid of the last tokens, ([T',] H', W'), for pixels x (B, 3, [T,] H, W)."""
        return tuple(s // p for s, p in zip(x.shape[2:], self.first.patch))


def frames_first(model: nn.Module, x: Tensor) -> Tensor:
    """Towers of transformers take clips as (B, T, 3, H, W); in their form as backbones they turn them themselves."""
    return x if x.dim() == 4 or isinstance(model, Form) else x.transpose(1, 2)


def own_names(model: nn.Module, state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """A state dict under the names of this version of transformers; ``save_pretrained`` still writes the old ones."""
    # Sited and form classes are unknown to transformers; their ancestors are known.
    names = (*(cls.__name__ for cls in type(model).__mro__), model.config.model_type)
    known = next((found for found in map(get_checkpoint_conversion_mapping, names) if found), ())
    renamings = [t for t in known if type(t) is WeightRenaming]
    return {rename_source_key(key, renamings, [])[0]: value for key, value in state.items()}


def pair(value: Any) -> Tuple[int, int]:
    """A size as (height, width)."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def specs_of(config: Any, blocks: List[nn.Module], ffn_dim: int, **fields: Any) -> List[BlockSpec]:
    """One spec per layer from a config of transformers."""
    # VideoMAE's config has a number, ViViT's three.
    tubelet = getattr(config, 'tubelet_size', None)
    patch = tuple(tubelet) if isinstance(tubelet, (list, tuple)) else pair(config.patch_size)
    if isinstance(tubelet, int):
        patch = (tubelet, *patch)
    size = pair(config.image_size)
    grid = tuple(s // p for s, p in zip(size, patch[-2:]))
    if len(patch) == 3:
        grid = (config.num_frames // patch[0], *grid)
    return [
        BlockSpec(
            index=i,
            stage=0,
            dim=config.hidden_size,
            heads=config.num_attention_heads,
            ffn_dim=ffn_dim,
            grid=grid,
            patch=patch,
            **fields) for i in range(len(blocks))
    ]


def tower_family(**fields: Any) -> Family:
    """The description of a kind of vision towers.

    Args:
        **fields: Of :class:`Family`, ``name``, ``classes``, ``forms`` and ``specs`` at least; the others are what most
            towers have.
    """
    return Family(**{**_COMMON, **fields})


def no_pooled_prompts(model: nn.Module, pooled: bool) -> None:
    """Refuse prompts that stay in the stream: towers of transformers return their tokens.

    Raises:
        ValueError: If ``pooled``.
    """
    if pooled:
        raise ValueError(f'pool_prompts=True: {type(model).__name__} returns its tokens, not their mean; leave it out')


def check_prompts(model: nn.Module, pooled: bool) -> None:
    """Refuse prompts that do not fit the outputs of a tower, or of one that hands out maps of several layers.

    Raises:
        ValueError: If they do not.
    """
    # Such backbones for dense prediction cut a grid out of the stream behind each layer.
    (maps_have_no_prompts if isinstance(model, BackboneMixin) else no_pooled_prompts)(model, pooled)


def _projection(model: nn.Module) -> Linear:
    return of_linear(model.embeddings.patch_embeddings.projection)


_COMMON: Dict[str, Any] = dict(
    points=frozenset(POINTS) - CLIP_POINTS,
    blocks=lambda model: list(model.encoder.layer),
    embed=lambda model: model.embeddings.patch_embeddings,
    embed_parameters=_projection,
    final_norm=lambda model: model.layernorm,
    final_class=SitedFinalNorm,
    own_names=own_names,
    check_prompts=no_pooled_prompts,
)
