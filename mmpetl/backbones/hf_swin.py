# SPDX-License-Identifier: Apache-2.0
"""SwinModel and Swinv2Model of transformers, specialised in place.

Their stages read a grid off every stream, in which there is no room for prompts: those of each block act as keys and
values only, and every block brings its own.
"""

from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor, nn
from transformers.models.swin import modeling_swin as v1
from transformers.models.swinv2 import modeling_swinv2 as v2

from ..sites import CLIP_POINTS, POINTS, BlockSpec, Tap
from .block import Linear, PostNormBlock, of_linear
from .family import maps_have_no_prompts
from .foreign import SeparateLayers, check_type, gelu_network, sited
from .hf import HFForm, NamedNorms, no_weights, pair, tower_family
from .window_attention import CosineWindowProjections, WindowBlock, WindowProjections
from .windows import Size

_KEEP = nn.Identity()
#: Parts of feed-forward networks, by their names in a layer.
_NETWORKS = dict(mlp=v1.SwinMLP, intermediate=v2.Swinv2Intermediate, output=v2.Swinv2Output)


class PlainWindows(SeparateLayers, WindowProjections):
    """Attention of SwinModel inside windows: (B * windows, N, C) -> same shape."""

    # Upstream drops behind the windows, by a module of the layer.
    proj_drop = _KEEP

    @property
    def proj(self) -> nn.Linear:
        return self.layer('proj')

    @property
    def num_heads(self) -> int:
        return self.num_attention_heads

    @property
    def factor(self) -> Optional[float]:
        """Factor of the logits."""
        return self.scaling

    @property
    def attention_drop_rate(self) -> float:
        """Dropout on the attention weights."""
        return self.attention_dropout

    @property
    def relative_position_bias_table(self) -> nn.Parameter:
        return self.relative_position_bias.relative_position_bias_table

    @property
    def relative_position_index(self) -> Tensor:
        """Row of the table for every pair of places, (N, N)."""
        # Upstream keeps it flat.
        return self.relative_position_bias.relative_position_index.unflatten(
            0, (-1, self.relative_position_bias.window_area))


class CosineWindows(SeparateLayers, CosineWindowProjections):
    """Attention of Swinv2Model inside windows: (B * windows, N, C) -> same shape."""

    LAYERS = dict(q='query', k='key', v='value')

    def layer(self, op: str) -> nn.Linear:
        """The linear layer of q, k, v or proj."""
        return self._modules['output'].dense if op == 'proj' else getattr(self.self, self.LAYERS[op])

    @property
    def proj(self) -> nn.Linear:
        return self.layer('proj')

    @property
    def proj_drop(self) -> nn.Module:
        return self._modules['output'].dropout

    @property
    def num_heads(self) -> int:
        return self.self.num_attention_heads

    @property
    def attention_drop_rate(self) -> float:
        """Dropout on the attention weights."""
        return self.self.dropout.p

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.self.logit_scale

    @property
    def cpb_mlp(self) -> nn.Module:
        return self.self.continuous_position_bias_mlp

    @property
    def relative_coords_table(self) -> Tensor:
        """Log-spaced distances, (1, H', W', 2)."""
        return self.self.relative_coords_table

    @property
    def relative_position_index(self) -> Tensor:
        """Row of the table for every pair of places, (N, N)."""
        return self.self.relative_position_index


class WindowLayer(NamedNorms, WindowBlock):
    """Mixin: layer with windows, (B, H * W, C) -> same shape."""

    @property
    def attn(self) -> nn.Module:
        return self._modules['attention']

    def network(self) -> Tuple[nn.Linear, nn.Module, nn.Linear]:
        """First layer, activation and second layer of the feed-forward network."""
        raise NotImplementedError

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, H * W, C) -> same shape."""
        return gelu_network(self.tap, *self.network(), h)

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return of_linear(self.network()[0 if op == 'fc1' else 2])

    def forward(self, hidden_states: Tensor, input_dimensions: Size, output_attentions: Any = False,
                **kwargs: Any) -> Tuple[Tensor, None]:
        """hidden_states (B, H * W, C), (H, W) -> the first in the same shape, and None for attention weights.

        Raises:
            ValueError: If attention weights are asked for, which are never formed.
        """
        no_weights(self, output_attentions)
        return self.run(hidden_states, tuple(input_dimensions)), None


class PlainLayer(WindowLayer):
    """Layer of SwinModel."""

    def window_of(self, grid: Size) -> Tuple[Size, Size]:
        """Window and cyclic shift over a grid (H, W).

        Raises:
            ValueError: If the grid is smaller than the window, for which there are no biases.
        """
        # Not the layer's own size, which upstream changes for good when a smaller map comes.
        size = self.attn.relative_position_bias.window_size[0]
        if min(grid) < size:
            raise ValueError(f'the feature map {grid} is smaller than the window ({size}): give larger pictures, or '
                             'build the model with a smaller window_size')
        shift = 0 if min(grid) == size else int(self.shift_size)
        return (size, size), (shift, shift)

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """(B, H * W, C) -> same shape."""
        return self.dropout(super().attention(h, prompts, *context))

    def network(self) -> Tuple[nn.Linear, nn.Module, nn.Linear]:
        """First layer, activation and second layer of the feed-forward network."""
        return self.mlp.fc1, self.mlp.activation_fn, self.mlp.fc2

    def drop_path_of(self, sub: str) -> nn.Module:
        # Upstream drops paths of attention alone.
        return self.drop_path if sub == 'attn' else self.dropout


class PostNormLayer(WindowLayer, PostNormBlock):
    """Layer of Swinv2Model."""

    # Keys are brought to length one behind the bias.
    key_bias_cancels = False

    def window_of(self, grid: Size) -> Tuple[Size, Size]:
        """Window and cyclic shift over a grid (H, W)."""
        return (self.window_size, self.window_size), (self.shift_size, self.shift_size)

    def mask_of(self, h: Tensor, padded: Size, size: Size, shift: Size) -> Tensor:
        """Shift mask (windows, N, N), which upstream adds twice."""
        return 2 * super().mask_of(h, padded, size, shift)

    def network(self) -> Tuple[nn.Linear, nn.Module, nn.Linear]:
        """First layer, activation and second layer of the feed-forward network."""
        return self.intermediate.dense, self.intermediate.intermediate_act_fn, self._modules['output'].dense

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, H * W, C) -> same shape."""
        return self._modules['output'].dropout(super().feed_forward(h))

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path


class MapEmbed:
    """Mixin: embedding of pictures, (B, 3, H, W) -> (B, H' * W', C) and (H', W')."""

    tap: Tap

    def forward(self, pixel_values: Tensor, bool_masked_pos: Optional[Tensor] = None,
                interpolate_pos_encoding: bool = False) -> Tuple[Tensor, Tuple[int, int]]:
        """pixel_values (B, 3, H, W), mask (B, H' * W') or None -> (B, H' * W', C) and (H', W')."""
        x, grid = self.patch_embeddings(pixel_values)
        self.tap.run_time.grid = tuple(grid)
        # Restated, as the norm, where scale and shift merge, stands in the middle.
        x = self.tap.norm('embed', self.norm(x))
        if bool_masked_pos is not None:
            x = torch.where(bool_masked_pos[..., None].bool(), self.mask_token.to(x.dtype), x)
        places = self.position_embeddings
        if places is not None:
            x = x + (self.interpolate_pos_encoding(x, *pixel_values.shape[2:]) if interpolate_pos_encoding else places)
        return self.dropout(x), grid


def _blocks(model: nn.Module) -> List[nn.Module]:
    return [block for stage in model.encoder.layers for block in stage.blocks]


def _check(model: nn.Module) -> None:
    for s, stage in enumerate(model.encoder.layers):
        for i, block in enumerate(stage.blocks):
            path = f'encoder.layers.{s}.blocks.{i}'
            for name in _NETWORKS.keys() & block._modules.keys():
                check_type(f'{path}.{name}', block._modules[name], _NETWORKS[name])


def _specs(model: nn.Module) -> List[BlockSpec]:
    config, specs = model.config, []  # type: Any, List[BlockSpec]
    after = isinstance(model, v2.Swinv2Model)
    height, width = model.embeddings.patch_grid
    for s, stage in enumerate(model.encoder.layers):
        for block in stage.blocks:
            size = block.window_size if after else config.window_size
            specs.append(
                BlockSpec(
                    index=len(specs),
                    stage=s,
                    dim=config.embed_dim * 2**s,
                    heads=config.num_heads[s],
                    ffn_dim=int(config.mlp_ratio * config.embed_dim * 2**s),
                    grid=(height, width),
                    window=(size, size),
                    patch=pair(config.patch_size),
                    key_bias=config.qkv_bias and not after,
                    post_norm=after))
        # Patch merging pads odd maps.
        height, width = -(-height // 2), -(-width // 2)
    return specs


class MapForm(HFForm):
    """Mixin: the model as backbone, whose last map is smaller than the first."""

    def map_of(self, x: Tensor) -> Tuple[int, ...]:
        """The grid of the last tokens, (H', W'), for pixels x (B, 3, H, W)."""
        # Padded to whole patches, and halved between stages.
        step = 2**(len(self.encoder.layers) - 1)
        return tuple(-(-s // (p * step)) for s, p in zip(x.shape[2:], self.first.patch))


FAMILY = tower_family(
    name='hf_swin',
    # Side methods need blocks of one width.
    points=frozenset(POINTS) - CLIP_POINTS - {'side'},
    global_attention=False,
    classes={
        **sited(globals(), 'Sited', PlainLayer, v1.SwinLayer),
        **sited(globals(), 'Sited', PostNormLayer, v2.Swinv2Layer),
        **sited(globals(), 'Sited', PlainWindows, v1.SwinAttention),
        **sited(globals(), 'Sited', CosineWindows, v2.Swinv2Attention),
        **sited(globals(), 'Sited', MapEmbed, v1.SwinEmbeddings, v2.Swinv2Embeddings),
    },
    forms=sited(globals(), 'Form', MapForm, v1.SwinModel, v2.Swinv2Model),
    blocks=_blocks,
    specs=_specs,
    embed=lambda model: model.embeddings,
    embed_parameters=lambda model: (model.embeddings.norm.weight, model.embeddings.norm.bias),
    check=_check,
    check_prompts=maps_have_no_prompts,
)
