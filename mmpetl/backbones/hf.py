# SPDX-License-Identifier: Apache-2.0
"""What the vision towers of transformers share: layers, attention, outputs, and their form inside OpenMMLab models."""

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..recompute import recomputed
from ..sites import CLIP_POINTS, POINTS, BlockSpec, Tap
from .block import Linear, SitedBlock, of_linear
from .cast import apply_linear
from .embed import SitedFinalNorm
from .family import Family
from .foreign import SeparateProjections, gelu_network, no_mask
from .form import Form


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
        # Two tokens, so that index 0 and the mean of [1:] are both the feature; expanded, not copied.
        tokens = feature[:, None].expand(-1, 2, -1)
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
