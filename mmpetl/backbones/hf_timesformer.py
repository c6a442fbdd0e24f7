# SPDX-License-Identifier: Apache-2.0
"""TimesformerModel of transformers with divided attention, specialised in place.

A layer attends over time first, every place by itself, then over space, every frame by itself. Methods act on the
attention over space and on the feed-forward network, which are those of the image model that was made one for clips;
attention over time stays as it is, or trains by ``tune=['*temporal*']``. Class token and prompts stand in every frame,
and are averaged over the frames afterwards, as upstream does with the class token.
"""

from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor, nn
from transformers.models.timesformer import modeling_timesformer as timesformer

from ..sites import CLIP_POINTS, POINTS, BlockSpec, Tap
from .attention import KeysValues, Projections, attend, gate_bias, join_extra
from .block import Linear, feed_forward, of_linear
from .foreign import refuse, sited
from .hf import HFForm, HFLayer, NamedNorms, frames_first, no_weights, pair, tower_family


class SpatialAttention(Projections):
    """A layer's attention over space: (B, N, C) -> (B, N, C), frame after frame behind the leading tokens.

    Args:
        layer: The sited layer. Its attention over time has the same class, so neither is specialised.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.tap, self.extra_tokens, self.training = layer.tap, layer.spec.extra_tokens, layer.training
        upstream = layer._modules['attention']
        self.inner, self.last = upstream.attention, upstream._modules['output']

    @property
    def qkv(self) -> nn.Linear:  # type: ignore[override]
        return self.inner.qkv

    @property
    def proj(self) -> nn.Linear:  # type: ignore[override]
        return self.last.dense

    def _per_frame(self, found: KeysValues, frames: int) -> KeysValues:
        """Keys and values of each sample (B, h or 1, K, d), once for each of its frames."""
        if found is None or found[0].dim() == 3 or len(found[0]) == 1:
            return found
        keys, values = (t.repeat_interleave(frames, 0) for t in found)
        return keys, values

    def __call__(self, x: Tensor, prompts: Optional[Tensor], frames: int, cells: int) -> Tensor:
        """x (B, N, C) with T ``frames`` of H W ``cells``, prompts as keys and values only (1 or B, P, C) -> (B, N, C).
        """
        front, heads = x.shape[1] - frames * cells, self.inner.num_heads

        def split(t: Tensor) -> Tensor:
            lead = t[:, None, :front].expand(-1, frames, -1, -1)
            return torch.cat([lead, t[:, front:].unflatten(1, (frames, cells))], 2).flatten(0, 1)

        q, k, v = (split(t) for t in self.project(x))
        extra = self._per_frame(join_extra(self.tap, self.of_prompts(prompts), heads), frames)
        keys = k.shape[1] + (0 if extra is None else extra[0].shape[-2])
        gate = gate_bias(self.tap, keys, 0 if prompts is not None else keys - k.shape[1] + self.extra_tokens)
        if gate is not None and len(gate) > 1:
            gate = gate.repeat_interleave(frames, 0)
        drop_rate = self.inner.attn_drop.p if self.training else 0.
        y = attend(q, k, v, heads, extra, gate, drop_rate, self.inner.scale, channels=self.tap.channels(k.shape[1]))
        y = y.unflatten(0, (-1, frames))
        y = torch.cat([y[:, :, :front].mean(1), y[:, :, front:].flatten(1, 2)], 1)
        return self.last.dropout(self.output(y))


class DividedLayer(NamedNorms, HFLayer):
    """Layer of TimesformerModel. Methods see frame after frame, upstream hands place after place along."""

    @property
    def projections(self) -> SpatialAttention:
        """The attention on which methods act, over space."""
        return SpatialAttention(self)

    def _sizes(self) -> Tuple[int, int]:
        frames, height, width = self.tap.grid
        return frames, height * width

    def enter(self, x: Tensor, *context: Any) -> Tensor:
        """Attention over time, of the grid tokens alone, by weights on which no method acts: (B, N, C) -> (B, N, C)."""
        frames, cells = self._sizes()
        front = x.shape[1] - frames * cells
        grid = x[:, front:].unflatten(1, (frames, cells)).transpose(1, 2)
        y = self.temporal_attention(self.temporal_layernorm(grid.flatten(0, 1)))[0]
        y = self.temporal_dense(self.drop_path(y)).view_as(grid)
        grid = (grid + y).transpose(1, 2).flatten(1, 2)
        return torch.cat([x[:, :front], grid], 1)

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.projections(h, prompts, *self._sizes())

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        inner, last = self.intermediate, self._modules['output']
        act, drop = inner.intermediate_act_fn, inner.dropout
        return feed_forward(self.tap, inner.dense, act, drop, last.dense, last.dropout, h)

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return of_linear((self.intermediate if op == 'fc1' else self._modules['output']).dense)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False, **kwargs: Any) -> Tuple[Tensor]:
        """hidden_states (B, N, C), place after place -> the same, in a tuple.

        Raises:
            ValueError: If attention weights are asked for, which are never formed.
        """
        no_weights(self, output_attentions)
        frames, height, width = self.tap.run_time.grid
        x = swap(hidden_states, height * width, frames)
        return (swap(self.run(x), frames, height * width), )


def swap(x: Tensor, outer: int, inner: int) -> Tensor:
    """Tokens (B, front + outer * inner, C) -> the same with the two axes of the grid tokens in the other order."""
    front = x.shape[1] - outer * inner
    grid = x[:, front:].unflatten(1, (outer, inner)).transpose(1, 2).flatten(1, 2)
    return torch.cat([x[:, :front], grid], 1)


class FramePatchEmbed:
    """Mixin: patch embedding of frames, (B, T, 3, H, W) -> (B T, H' W', C), T and W'."""

    tap: Tap

    def forward(self, pixel_values: Tensor) -> Tuple[Tensor, int, int]:
        """pixel_values (B, T, 3, H, W) -> (B T, H' W', C), T and W'.

        Raises:
            ValueError: If the clips have another size than the model was made for: its layers count on it.
        """
        frames, height, width = self.tap.run_time.grid
        sizes = (pixel_values.shape[1], *(s // p for s, p in zip(pixel_values.shape[-2:], pair(self.patch_size))))
        if sizes[0] != frames or sizes[2] != width:
            raise ValueError(
                f'clips of {sizes[0]} frames, {sizes[2]} patches wide, but the model takes {frames} frames, {width} '
                f'patches wide: sample {frames} frames, or build it with num_frames={sizes[0]}')
        self.tap.run_time.grid = sizes
        tokens, count, columns = super().forward(pixel_values)
        return self.tap.norm('embed', tokens), count, columns


def _check(model: nn.Module) -> None:
    kind = model.config.attention_type
    if kind != 'divided_space_time':
        refuse('encoder.layer.0', model.encoder.layer[0], f"attention_type={kind!r} is not known here; known: "
               "'divided_space_time'")


def _specs(model: nn.Module) -> List[BlockSpec]:
    config = model.config
    patch, size = pair(config.patch_size), pair(config.image_size)
    grid = (config.num_frames, *(s // p for s, p in zip(size, patch)))
    return [
        BlockSpec(
            index=i,
            stage=0,
            dim=config.hidden_size,
            heads=config.num_attention_heads,
            ffn_dim=config.intermediate_size,
            extra_tokens=1,
            grid=grid,
            patch=(1, *patch),
            key_bias=config.qkv_bias) for i in range(len(model.encoder.layer))
    ]


class DividedForm(HFForm):
    """Mixin: the model as backbone, whose grid tokens come frame after frame."""

    def tower(self, x: Tensor) -> Any:
        """x (B, T, 3, H, W) -> upstream's outputs, tokens frame after frame."""
        out = super().tower(x)
        frames, height, width = self.petl.run_time.grid
        out.last_hidden_state = swap(out.last_hidden_state, height * width, frames)
        return out


FAMILY = tower_family(
    name='hf_timesformer',
    # Side methods read keys that every token sees; here every frame has its own.
    points=frozenset(POINTS) - CLIP_POINTS - {'side'},
    classes={
        **sited(globals(), 'Sited', DividedLayer, timesformer.TimesformerLayer),
        **sited(globals(), 'Sited', FramePatchEmbed, timesformer.TimesformerPatchEmbeddings),
    },
    forms=sited(globals(), 'Form', DividedForm, timesformer.TimesformerModel),
    specs=_specs,
    check=_check,
    clip_axes=frames_first,
)
