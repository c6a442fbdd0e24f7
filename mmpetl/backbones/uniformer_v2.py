# SPDX-License-Identifier: Apache-2.0
"""mmaction2's UniFormerV2, specialised in place.

Methods act on the blocks of its image transformer, over every frame as over an image. What UniFormerV2 adds beside them
(local attention over time, and the queries that gather features of all frames) stays as it is, or trains by ``tune``.
"""

from typing import Any, Dict, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from mmaction.models.backbones.uniformerv2 import ResidualAttentionBlock, UniFormerV2
from mmengine.logging import print_log
from torch import Tensor, nn

from ..sites import CLIP_POINTS, POINTS, BlockSpec, Tap
from .block import Linear, SitedBlock, of_linear
from .embed import SitedFinalNorm
from .family import Family, maps_have_no_prompts
from .foreign import ForeignAttention, gelu_network, table_with_shift
from .released import own_part


class FusedWeight(NamedTuple):
    """Weight (3 C, C) and bias (3 C) of q, k and v, which are no layer."""
    weight: Tensor
    bias: Optional[Tensor]


class SitedTorchAttention(ForeignAttention, nn.MultiheadAttention):
    """torch's attention: (B, N, C) -> (B, N, C)."""

    # Upstream's kernel reads all weights past the layers.
    calls_qkv = calls_proj = False
    logit_scale = None
    attention_drop_rate = 0.

    @property
    def qkv(self) -> FusedWeight:  # type: ignore[override]
        return FusedWeight(self.in_proj_weight, self.in_proj_bias)

    @property
    def proj(self) -> nn.Linear:  # type: ignore[override]
        return self.out_proj

    def fused(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., 3 C)."""
        return F.linear(x, *(self.tap.held('qkv') or self.qkv))

    def forward(self, x: Tensor, prompts: Optional[Tensor] = None) -> Tensor:  # type: ignore[override]
        """x (B, N, C), prompts as keys and values only (1 or B, P, C) -> (B, N, C)."""
        return self.output(self.mix(x, prompts))


class SitedResidualAttentionBlock(SitedBlock, ResidualAttentionBlock):
    """Block over the frames of clips: (1 + H * W, B T, C) -> same shape; methods see (B T, 1 + H * W, C)."""

    @property
    def norm1(self) -> nn.Module:  # type: ignore[override]
        return self.ln_1

    @property
    def norm2(self) -> nn.Module:  # type: ignore[override]
        return self.ln_2

    def _over_time(self, network: nn.Module, x: Tensor, frames: int) -> Tensor:
        """x (B T, 1 + H * W, C) and its grid tokens' local attention over time -> same shape."""
        height, width = self.tap.grid
        grid = x[:, 1:].unflatten(1, (height, width)).unflatten(0, (-1, frames)).permute(0, 4, 1, 2, 3)
        grid = grid + self.drop_path(network(grid.contiguous()))
        return torch.cat([x[:, :1], grid.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)], 1)

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """(B T, N, C) -> (B T, N, C)."""
        return self.attn(h, prompts)

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B T, N, C) -> (B T, N, C)."""
        return gelu_network(self.tap, self.mlp.c_fc, self.mlp.gelu, self.mlp.c_proj, h)

    def between(self, x: Tensor, *context: Any) -> Tensor:
        """Local attention over time behind attention, where the model has it: x (B T, N, C) -> same shape."""
        return x if self.no_lmhra or not self.double_lmhra else self._over_time(self.lmhra2, x, context[0])

    def enter(self, x: Tensor, *context: Any) -> Tensor:
        """Local attention over time before the first norm, where the model has it: x (B T, N, C) -> same shape."""
        return x if self.no_lmhra else self._over_time(self.lmhra1, x, context[0])

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return of_linear(self.mlp.c_fc if op == 'fc1' else self.mlp.c_proj)

    def forward(self, x: Tensor, T: int = 8) -> Tensor:
        """x (1 + H * W, B T, C) -> same shape."""
        return self.run(x.transpose(0, 1), T).transpose(0, 1)


class FrameConvolution(nn.Conv3d):
    """Patch embedding that is a bare convolution over frames: (B, 3, T, H, W) -> (B, C, T', H', W')."""

    tap: Tap

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, T, H, W) -> (B, C, T', H', W')."""
        x = super().forward(x)
        self.tap.run_time.grid = tuple(x.shape[3:])
        return self.tap.norm('embed', x.movedim(1, -1)).movedim(-1, 1)


def _specs(model: UniFormerV2) -> List[BlockSpec]:
    patch = tuple(model.conv1.stride[1:])
    grid = tuple(model.input_resolution // p for p in patch)
    return [
        BlockSpec(
            index=i, stage=0, dim=block.attn.embed_dim, heads=block.attn.num_heads, ffn_dim=block.mlp.c_fc.out_features,
            extra_tokens=1, grid=grid, patch=patch) for i, block in enumerate(model.transformer.resblocks)
    ]


def _clips(model: UniFormerV2, x: Tensor) -> Tensor:
    """Images (B, 3, H, W) -> clips (B, 3, T, H, W) of each, of the model's length."""
    return x[:, :, None].expand(-1, -1, model.transformer.T * model.conv1.stride[0], -1, -1)


def _own_names(model: UniFormerV2, state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The backbone's part of a file; to one of CLIP, which has the blocks alone, what stands beside them is added as it
    is in the model."""
    inside = own_part(model, state, 'conv1.weight')
    if any('transformer.dec.' in name for name in inside):
        return inside
    beside = {n: t for n, t in model.state_dict().items()
              if n not in inside and (n.startswith('transformer.') and 'resblocks' not in n or 'lmhra' in n)}
    print_log(f'UniFormerV2: the file has the blocks alone; {len(beside)} tensors beside them stay as they are',
              'current')
    return {**inside, **beside}


FAMILY = Family(
    name='uniformer_v2',
    # Side methods give the features of images, and features of frames are gathered beside the blocks.
    points=frozenset(POINTS) - CLIP_POINTS - {'side'},
    classes={
        ResidualAttentionBlock: SitedResidualAttentionBlock,
        nn.MultiheadAttention: SitedTorchAttention
    },
    scope=lambda model: model.transformer.resblocks,
    blocks=lambda model: list(model.transformer.resblocks),
    specs=_specs,
    embed=lambda model: model.conv1,
    embed_class=FrameConvolution,
    embed_parameters=lambda model: (model.conv1.weight, model.conv1.bias),
    fold_embed_shift=lambda model, shift: table_with_shift(model.positional_embedding, 1, shift),
    final_norm=lambda model: model.transformer.norm,
    final_class=SitedFinalNorm,
    check_prompts=maps_have_no_prompts,
    own_names=_own_names,
    clip_axes=_clips,
)


def build(**kwargs: Any) -> UniFormerV2:
    """mmaction2's UniFormerV2."""
    return UniFormerV2(**kwargs)
