# SPDX-License-Identifier: Apache-2.0
"""DualPath: an image transformer over frames of a clip and over grids of many small frames, with adapters for each.

Park et al., "Dual-path Adaptation from Image to Video Transformers", https://arxiv.org/abs/2303.09857, section 3.3,
in the form of the published code. All T frames, scaled down by h and w, are laid in grids of h x w frames, in order of
time row by row: T / (h w) images of the temporal path. Every (T / T_s)-th frame in full size is one of the T_s images
of the spatial path. Both pass the same frozen blocks::

    x_t <- x_t + A_2(attention(A_1(LN(x_t))))          x_s <- x_s + attention(LN(x_s)) + A_4(LN(x_s))
    x_t <- x_t + A_3(ffn(LN(x_t)))                     x_s <- x_s + ffn(LN(x_s)) + A_5(LN(x_s))

    A(z) = W_up dropout(gelu(W_down z + b_down)) + b_up
    feature = [ mean of the grids' features ; mean of the frames' ],        M = T / (h w) + T_s images in all

Tokens of grids have, in place of the base's positions, a table S of their own and a code of time,
``sin(n w_k), cos(n w_k)`` with ``w_k = 10000^(-2 k / C)``, where n counts the frames from 1, and is 0 for the class
token. Where the border of two frames crosses a token, n is the mean over its pixels. S is drawn from N(0, 1 / C),
down-projections as torch does, all else is zero.
"""

from typing import Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import METHODS
from ..sites import BlockSpec, Layers, PerLayer, positive
from .bottleneck import Bottleneck
from .over_frames import OverFrames

#: Adapters of the two paths; A_1 to A_5.
TIME, SPACE = ('time_in', 'time_attn', 'time_ffn'), ('space_attn', 'space_ffn')


def frame_numbers(grids: int, shape: Tuple[int, int], tokens: Tuple[int, int], patch: Tuple[int, int],
                  like: Tensor) -> Tensor:
    """Number of the frame that each token of a grid shows, from 1 -> (grids, tokens), in the type of ``like`` (...).

    Args:
        grids: Images per clip, each with the frames that follow.
        shape: Frames in a column and in a row of a grid.
        tokens: Tokens in a column and in a row.
        patch: Pixels of a token, (h, w).
    """
    along = []
    for frames, count, size in zip(shape, tokens, patch):
        pixel = torch.arange(count * size, device=like.device)
        along.append((pixel * frames // (count * size)).view(count, size).to(like.dtype).mean(1))
    inside = 1 + along[0][:, None] * shape[1] + along[1]
    first = torch.arange(grids, device=like.device).to(like.dtype) * (shape[0] * shape[1])
    return (first[:, None, None] + inside).flatten(1)


@METHODS.register_module()
class DualPath(OverFrames):
    """Spatial and temporal paths through one image model; the feature is 2 C wide.

    Args:
        specs: Blocks of a backbone for images that reads clips (``frames=T``).
        frame_grid: Frames (h, w) in a column and in a row of a grid.
        spatial_frames: Frames T_s of the spatial path.
        mid_dims: Hidden width of the adapters; None: a quarter of the block's, as published. Per layer where wanted.
        drop_rate: Dropout on the hidden units.
        layers: Adapted blocks.

    Raises:
        ValueError: If the backbone reads no clips, their frames fill no whole grids or are no multiple of
            ``spatial_frames``, their pixels do not divide by ``frame_grid``, ``mid_dims`` < 1, or a block lies outside
            the backbone.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 frame_grid: Sequence[int] = (4, 4),
                 spatial_frames: int = 8,
                 mid_dims: PerLayer = None,
                 drop_rate: float = 0.1,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        first = self.specs[0]
        if len(frame_grid) != 2:
            raise ValueError(f'DualPath: frame_grid must be two numbers (h, w), got {frame_grid!r}')
        h, w = self.frame_grid = tuple(positive(n, 'frame_grid', 'DualPath') for n in frame_grid)
        self.spatial_frames = positive(spatial_frames, 'spatial_frames', 'DualPath')
        if first.frames % (h * w) or first.frames % spatial_frames:
            raise ValueError(f'DualPath: clips of {first.frames} frames must fill whole grids of {h} x {w} and be a '
                             f'multiple of spatial_frames={spatial_frames}')
        self.pixels = tuple(n * p for n, p in zip(first.grid, first.patch))
        if self.pixels[0] % h or self.pixels[1] % w:
            raise ValueError(f'DualPath: frames of {self.pixels[0]} x {self.pixels[1]} pixels cannot be scaled down by '
                             f'frame_grid={tuple(frame_grid)}')
        self.grids = first.frames // (h * w)
        mids = self.quarters(mid_dims)
        self.blocks = self.for_parts((*TIME, *SPACE), lambda i, part: Bottleneck(
            self.specs[i].dim, mids[i], 'gelu', drop_rate, 1., 'none'))
        self.positions_of_grids = nn.Parameter(
            torch.empty(first.extra_tokens + first.grid[0] * first.grid[1], first.dim))
        self.reset_parameters()

    @property
    def out_dims(self) -> int:
        """Width of the feature."""
        return 2 * self.specs[-1].dim

    def active(self, point: str, index: int) -> bool:
        ends = dict(images=0, entry=0, pool=len(self.specs) - 1)
        return ends[point] == index if point in ends else super().active(point, index)

    def norm_ops(self, index: int) -> Tuple[str, ...]:
        return ('norm1', )

    def reset_parameters(self) -> None:
        nn.init.normal_(self.positions_of_grids, std=self.specs[0].dim**-0.5)
        for block in self.blocks.values():
            for adapter in block.values():
                adapter.reset_parameters('lora')

    def on_images(self, x: Tensor) -> Tensor:
        """x (B, 3, T, H, W) -> grids and frames (B, 3, T / (h w) + T_s, H, W).

        Raises:
            ValueError: If clips have another size than those for which the backbone was built.
        """
        self.check_frames(x.shape[2])
        if tuple(x.shape[3:]) != self.pixels:
            raise ValueError(f'DualPath: made for frames of {self.pixels[0]} x {self.pixels[1]} pixels, got '
                             f'{x.shape[3]} x {x.shape[4]}: set img_size of the backbone')
        (h, w), (height, width) = self.frame_grid, self.pixels
        small = F.avg_pool3d(x, (1, h, w)).unflatten(2, (self.grids, h, w))
        grids = small.transpose(4, 5).reshape(*x.shape[:2], self.grids, height, width)
        return torch.cat([grids, x[:, :, ::x.shape[2] // self.spatial_frames]], 2)

    def _paths(self, i: int, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Images (B M, ...) -> those of the temporal path (B, grids, ...) and of the spatial one (B, T_s, ...)."""
        frames = self.frames(i)
        temporal, spatial = x.unflatten(0, (-1, frames)).split([self.grids, frames - self.grids], 1)
        return temporal, spatial

    @staticmethod
    def _joined(temporal: Tensor, spatial: Tensor) -> Tensor:
        """The reverse of :meth:`_paths`."""
        return torch.cat([temporal, spatial], 1).flatten(0, 1)

    def _code(self, like: Tensor) -> Tensor:
        """Code of time (grids, N, C) of the tokens, class token first, in the type of ``like`` (...)."""
        first = self.specs[0]
        numbers = frame_numbers(self.grids, self.frame_grid, first.grid, first.patch, like)  # type: ignore[arg-type]
        numbers = F.pad(numbers, (first.extra_tokens, 0))
        k = torch.arange(0, first.dim, 2, device=like.device).to(like.dtype)
        angles = numbers[..., None] * 10000**(-k / first.dim)
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)

    def on_entry(self, x: Tensor) -> Tensor:
        """x (B M, N, C): tokens of grids get S and the code of time for the base's positions -> (B M, N, C)."""
        temporal, spatial = self._paths(0, x)
        table = self.positions_of_grids
        return self._joined((temporal - self.base_positions() + (table + self._code(table))).to(x.dtype), spatial)

    def on_norm(self, i: int, op: str, y: Tensor) -> Tensor:
        """y (B M, N, C), the normed input of attention, of grids through A_1 -> (B M, N, C)."""
        temporal, spatial = self._paths(i, y)
        return self._joined(self.blocks[str(i)]['time_in'](temporal, self.half), spatial)

    def on_branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """x, y (B M, N, C), input and output of a sublayer: y of grids through A_2 or A_3, y + A_4(x) or y + A_5(x) of
        frames -> (B M, N, C)."""
        adapters = self.blocks[str(i)]
        temporal, spatial = self._paths(i, y)
        return self._joined(adapters[f'time_{sub}'](temporal, self.half),
                            spatial + adapters[f'space_{sub}'](self._paths(i, x)[1], self.half))

    def on_pool(self, y: Tensor) -> Tensor:
        """y (B, M, C), features of grids and frames -> (B, 2 C), the means of both."""
        return torch.cat([y[:, :self.grids].mean(1), y[:, self.grids:].mean(1)], -1)
