# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's SwinTransformer, specialised in place."""

from typing import Any, List, Optional, Sequence, Tuple

import torch
from mmcv.cnn.bricks.transformer import PatchEmbed, PatchMerging
from mmpretrain.models.backbones.swin_transformer import SwinBlock, SwinTransformer
from mmpretrain.models.utils import ShiftWindowMSA
from mmpretrain.models.utils.attention import WindowMSA
from torch import Tensor, nn

from ..recompute import LOOK_UP, recomputed
from ..sites import CLIP_POINTS, POINTS, BlockSpec, Tap
from .block import Linear, SitedBlock, feed_forward, of_ffn
from .embed import SitedFinalNorm, SitedPatchEmbed
from .family import Family
from .window_attention import WindowProjections
from .windows import Size, from_windows, shift_mask, to_windows


class SitedWindowMSA(WindowProjections, WindowMSA):
    """Attention inside windows: (B * windows, P + N, C) -> same shape."""

    def forward(self, x: Tensor, mask: Optional[Tensor], windows: Sequence[int], shifted: bool, tokens: int,
                prompts: Optional[Tensor]) -> Tensor:
        """As :meth:`WindowProjections.inside`, with one word for both axes: (B * windows, P + N, C) -> same shape."""
        return self.inside(x, mask, windows, (shifted, shifted), tokens, prompts)


class SitedShiftWindowMSA(ShiftWindowMSA):
    """Pads, rolls and partitions the grid tokens; prompts are copied into every window and averaged back over the
    windows."""

    tap: Tap

    def _window(self, height: int, width: int) -> Tuple[int, int]:
        """Effective window and shift for this grid, as upstream chooses them."""
        if min(height, width) < self.window_size and not self.pad_small_map:
            raise ValueError(f'the feature map ({height}, {width}) is smaller than the window ({self.window_size}): '
                             'set pad_small_map=True or use a smaller window_size')
        # With a single window along an axis a shift would only mix it with itself.
        alone = min(height, width) == self.window_size and not self.pad_small_map
        return self.window_size, 0 if alone else self.shift_size

    def forward(self, query: Tensor, hw_shape: Tuple[int, int], prompts: Optional[Tensor] = None) -> Tensor:
        """query (B, P + H * W, C), prompts as keys and values only (1 or B, P, C) -> (B, P + H * W, C)."""
        height, width = hw_shape
        size, shift = self._window(height, width)
        windows = (-(-height // size), -(-width // size))
        padded = (windows[0] * size, windows[1] * size)
        # What is not on the grid are prompts; Swin has no class token.
        tokens = query.shape[1] - height * width
        x = recomputed(self._to_windows, query, hw_shape, padded, size, shift)
        mask = shift_mask(padded, (size, size), (shift, shift), query.device) if shift else None
        x = self.w_msa(x, mask, windows, shift > 0, tokens, prompts)
        return recomputed(self._from_windows, x, hw_shape, padded, size, shift)

    def _to_windows(self, x: Tensor, grid: Tuple[int, int], padded: Tuple[int, int], size: int, shift: int) -> Tensor:
        """(B, P + H*W, C) -> (B * windows, P + size*size, C)."""
        tokens = x.shape[1] - grid[0] * grid[1]
        inner, x = x[:, :tokens], to_windows(x[:, tokens:], grid, (size, size), (shift, shift))
        if tokens:
            # Windows are batch-major, so each sample's prompts are repeated once per window of that sample.
            x = torch.cat([inner.repeat_interleave(padded[0] * padded[1] // size**2, 0), x], 1)
        return x

    def _from_windows(self, x: Tensor, grid: Tuple[int, int], padded: Tuple[int, int], size: int, shift: int) -> Tensor:
        """(B * windows, P + size*size, C) -> (B, P + H*W, C)."""
        tokens = x.shape[1] - size * size
        # Each window has changed its copy of the prompts; the mean is the published way back to one.
        inner, x = x[:, :tokens], from_windows(x[:, tokens:], grid, (size, size), (shift, shift))
        if tokens:
            x = torch.cat([inner.unflatten(0, (-1, padded[0] * padded[1] // size**2)).mean(1), x], 1)
        return x


class SwinParts(SitedBlock):
    """What the blocks of mmpretrain's Swins have alike: (B, P + H*W, C) -> same shape."""

    attn: Any
    ffn: Any
    # A bias of (heads, N, N) for every block and group of windows is looked up from a small table.
    least_level = LOOK_UP

    def grid_of(self, x: Tensor, *context: Any) -> Tuple[int, ...]:
        """The grid (H, W) of x (B, P + H * W, C), which Swin hands along."""
        return tuple(context[0])

    @property
    def projections(self) -> Any:
        """The module that holds q, k, v and proj."""
        return self.attn.w_msa

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return of_ffn(self.ffn, op)

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        (fc1, act, drop1), fc2, drop2 = self.ffn.layers
        return self.ffn.gamma2(feed_forward(self.tap, fc1, act, drop1, fc2, drop2, h))

    def forward(self, x: Tensor, hw_shape: Tuple[int, int]) -> Tensor:
        """x (B, P + H * W, C), (H, W) -> same shape."""
        return self.run(x, hw_shape)


class SitedSwinBlock(SwinParts, SwinBlock):
    """Block of mmpretrain's SwinTransformer: (B, P + H*W, C) -> same shape."""

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """h (B, P + H * W, C) -> same shape; the context is (H, W)."""
        return self.attn(h, context[0], prompts)

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.attn.drop if sub == 'attn' else self.ffn.dropout_layer


class SitedPatchMerging(PatchMerging):
    """Patch merging that takes prompts along: a prompt is merged with three copies of itself."""

    def forward(self, x: Tensor, input_size: Tuple[int, int]) -> Tuple[Tensor, Tuple[int, int]]:
        """x (B, P + H * W, C), (H, W) -> (B, P + H' * W', C') and (H', W')."""
        tokens = x.shape[1] - input_size[0] * input_size[1]
        merged, size = super().forward(x[:, tokens:], input_size)
        if not tokens:
            return merged, size
        # nn.Unfold orders channels first, so the four copies of a channel stand side by side.
        prompts = x[:, :tokens].repeat_interleave(4, -1)
        # Norm and reduction of the merged tokens: prompts change width with the stage.
        prompts = self.reduction(prompts if self.norm is None else self.norm(prompts))
        return torch.cat([prompts, merged], 1), size


def _blocks(model: SwinTransformer) -> List[nn.Module]:
    return [block for stage in model.stages for block in stage.blocks]


def spec_of(block: Any, index: int, stage: int, dim: int, grid: Size, patch: Size, **fields: Any) -> BlockSpec:
    """The spec of a block of one of mmpretrain's Swins, ``dim`` wide over a ``grid`` (H, W)."""
    window = block.attn.w_msa
    return BlockSpec(index=index, stage=stage, dim=dim, heads=window.num_heads, ffn_dim=block.ffn.feedforward_channels,
                     grid=grid, window=tuple(window.window_size), patch=patch, **fields)


def _specs(model: SwinTransformer) -> List[BlockSpec]:
    patch = tuple(model.patch_embed.projection.kernel_size)
    specs: List[BlockSpec] = []
    # Of the size for which it was built; at run time blocks are told theirs.
    height, width = model.patch_resolution
    for s, stage in enumerate(model.stages):
        for block in stage.blocks:
            specs.append(
                spec_of(block, len(specs), s, stage.embed_dims, (height, width), patch,
                        key_bias=block.attn.w_msa.qkv.bias is not None))
        # Patch merging pads odd maps.
        height, width = -(-height // 2), -(-width // 2)
    return specs


def _check_prompts(model: SwinTransformer, pooled: bool) -> None:
    if tuple(model.out_indices) != (len(model.stages) - 1, ):
        raise ValueError(
            f'prompts in the token stream need out_indices=({len(model.stages) - 1},), got {tuple(model.out_indices)}')


FAMILY = Family(
    name='swin',
    # Side methods need blocks of one width.
    points=frozenset(POINTS) - CLIP_POINTS - {'side'},
    global_attention=False,
    classes={
        SwinBlock: SitedSwinBlock,
        ShiftWindowMSA: SitedShiftWindowMSA,
        WindowMSA: SitedWindowMSA,
        PatchMerging: SitedPatchMerging,
        PatchEmbed: SitedPatchEmbed
    },
    blocks=_blocks,
    specs=_specs,
    embed=lambda model: model.patch_embed,
    # The norm of the patch embedding is its last affine map, so scale and shift merge there.
    embed_parameters=lambda model: (model.patch_embed.norm.weight, model.patch_embed.norm.bias),
    final_norm=lambda model: getattr(model, f'norm{len(model.stages) - 1}', None),
    final_class=SitedFinalNorm,
    merges_prompts=True,
    pools_prompts=lambda model: True,
    check_prompts=_check_prompts,
)


def build(**kwargs: Any) -> SwinTransformer:
    """mmpretrain's SwinTransformer."""
    return SwinTransformer(**kwargs)
