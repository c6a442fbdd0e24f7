# SPDX-License-Identifier: Apache-2.0
"""Video Swin: the original and mmaction2's names, V-PETL's files, and image Swin weights inflated in time."""

import torch
from einops import repeat

from .arch import Arch, Export, Format, has
from .match_report import Report
from .rename import State, depth, relabel
from .resize import bias_window, relative_index, resize_bias
from .swin import LORA, SPARE, fit_tables, from_original, initial_keys, number_last_norm


def from_video(state: State, report: Report) -> State:
    """Original Video Swin and mmaction2's ``SwinTransformer3D``: the same names but for the number of the last norm."""
    canonical = from_original(state, report)
    head = report.extras.get('head.weight')
    if head is not None and head.ndim == 5:  # V-PETL classifies by a 1 x 1 x 1 convolution
        # A convolution of one pixel is a linear layer.
        report.extras['head.weight'] = head.flatten(1)
    return _plain_last_norm(canonical)


def _plain_last_norm(state: State) -> State:
    """``norm3`` -> ``norm`` of a four-stage network, the inverse of :func:`number_last_norm`."""
    last = depth(state, 'layers') - 1
    return relabel(state, ((rf'norm{last}\.(weight|bias)', r'norm.\1'),))


def inflate(state: State, shapes: dict[str, tuple[int, ...]], report: Report) -> State:
    """Give image Swin weights a time axis (Video Swin, https://arxiv.org/abs/2106.13230, section 3.3).

    The patch kernel is repeated over the tubelet and divided by its length; a bias table is repeated for every distance
    in time. On a clip of one repeated image the result gives the image model's features.

    Args:
        state (dict): Canonical image tensors.
        shapes (dict): Shapes of the target ``SwinTransformer3D``; must not be empty.
        report (Report): Receives what changes.

    Raises:
        ValueError: No target shapes to inflate to.
    """
    kernel, target = 'patch_embed.proj.weight', shapes.get('patch_embed.proj.weight')
    if target is None or len(target) != 5:
        raise ValueError(f'{kernel}: to inflate image weights give the shapes of the video backbone, of '
                         'mmpetl convert by --config')
    length, old = target[2], tuple(state[kernel].shape)
    # Over a tubelet of equal frames the sum is the image's value again.
    state[kernel] = repeat(state[kernel], 'o i h w -> o i t h w', t=length) / length
    report.reshaped.append((kernel, old, tuple(state[kernel].shape), 'repeated over time, divided by its length'))
    for key in [key for key in state if key.endswith('relative_position_bias_table')]:
        index_key = key.replace('bias_table', 'index')
        stored = state.pop(index_key, None)
        if key not in shapes:
            continue
        # The target's; its last two axes are what the image table is resized to.
        window = bias_window(shapes[key][0], shapes[index_key][0] if index_key in shapes else None, dims=3)
        old = tuple(state[key].shape)
        source = bias_window(old[0], None if stored is None else stored.shape[0])
        # The same for every distance in time: the image model knows none.
        state[key] = repeat(resize_bias(state[key], source, window[1:]), 'd h -> (t d) h', t=2 * window[0] - 1)
        state[index_key] = relative_index(window)
        report.reshaped.append((key, old, tuple(state[key].shape), f'window {source} -> {window}, repeated over time'))
        report.generated[index_key] = 'fixed index of pairs of tokens'
    return state


def to_target(state: State, shapes: dict[str, tuple[int, ...]], grid: tuple[int, ...] | None, report: Report) -> State:
    """Adapt canonical tensors, of images or videos, to one mmaction2 ``SwinTransformer3D``."""
    weight: torch.Tensor | None = state.get('patch_embed.proj.weight')
    # Images have no axis of time in their patch kernel.
    if weight is not None and weight.ndim == 4:
        return number_last_norm(inflate(state, shapes, report))
    return number_last_norm(fit_tables(state, shapes, report, dims=3))


_PROJ = 'patch_embed.proj.weight'
ARCH = Arch(
    name='video_swin',
    families=('video_swin', 'swin'),
    adapt=to_target,
    initial=initial_keys,
    spare=SPARE,
    formats={
        'video-swin':
        Format('video_swin', _PROJ, lambda s: s[_PROJ].ndim == 5 and has(s, 'layers.'), from_video,
               outer=((r'cls_head\.fc_cls\.(weight|bias)', r'head.\1'), ), aliases=('mmaction-video-swin', 'v-petl')),
    },
    exports={'original': Export(((r'(patch_embed|layers|norm|head)\..*', r'\g<0>'), ), _plain_last_norm)},
    lora={library: ('layers.{}.blocks.{}', LORA) for library in ('original', 'mmaction2')},
)
