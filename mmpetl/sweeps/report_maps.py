# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model looked at: attributions, attention of the class token, and the share of the prompts."""

import io
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from torch import nn

from ..training.attribution import Attention, Attribution, attribution, class_attention
from .run_facts import as_image

#: Side of one picture, pixels.
SIDE = 168


@dataclass
class Maps:
    """What a model looked at in one picture or clip."""
    attribution: Attribution
    attention: Optional[List[Attention]]


def maps_of(model: nn.Module, inputs: torch.Tensor, label: int) -> Maps:
    """Attributions and attention of one sample.

    Args:
        model: The model, evaluated.
        inputs: (C, H, W), or the one view (1, C, T, H, W) of a clip, as the loader gives it.
        label: Class whose score is explained.

    Raises:
        ValueError: If the methods leave nothing to explain, see :func:`mmpetl.training.attribution.attribution`.
    """
    data = model.data_preprocessor(dict(inputs=[inputs], data_samples=None), False)  # type: ignore[operator]
    try:
        attention = class_attention(model, data)
    except ValueError:  # no class token
        attention = None
    return Maps(attribution(model, data, label), attention)


def _colours(values: np.ndarray, name: str) -> np.ndarray:
    """(H, W) in 0 to 1 -> RGB (H, W, 3) uint8."""
    from matplotlib import colormaps
    return (255 * colormaps[name](values)[..., :3]).round().astype(np.uint8)


def _overlay(picture: Any, grid: torch.Tensor, name: str, middle: bool) -> Any:
    """The picture in grey below a map of its tokens; where ``middle``, zero is the middle of the colours."""
    from PIL import Image
    values = grid.double().numpy()
    values = values.sum(0) if values.ndim == 3 else values
    largest = max(float(np.abs(values).max()), 1e-12)
    scaled = values / largest / 2 + .5 if middle else values / largest
    shown = Image.fromarray(_colours(scaled, name)).resize(picture.size, Image.Resampling.BICUBIC)
    return Image.blend(picture.convert('L').convert('RGB'), shown, .55)


def draw_maps(inputs: torch.Tensor, swap: bool, maps: Maps) -> bytes:
    """A JPEG file: the picture, what adds to the score (red) and takes from it (blue), the attention of the last block.

    Args:
        inputs: What the model saw, (C, H, W) or (1, C, T, H, W).
        swap: Whether its channels are BGR.
        maps: What is drawn.
    """
    from PIL import Image
    picture = as_image(inputs, swap)
    height = max(1, round(SIDE * picture.height / picture.width))
    picture = picture.resize((SIDE, height), Image.Resampling.BICUBIC)
    panels = [picture, _overlay(picture, maps.attribution.grid, 'RdBu_r', True)]
    if maps.attention is not None:
        panels.append(_overlay(picture, maps.attention[-1].grid, 'viridis', False))
    whole = Image.new('RGB', (len(panels) * (SIDE + 4) - 4, height), 'white')
    for n, panel in enumerate(panels):
        whole.paste(panel, (n * (SIDE + 4), 0))
    file = io.BytesIO()
    whole.save(file, 'JPEG', quality=88)
    return file.getvalue()


def words_of(maps: Maps, name: str) -> str:
    """What the numbers of one sample say, for example 'score of dog +2.31: picture +1.90, prompts +0.41'."""
    found = maps.attribution
    of_prompts = sum(float(t.sum()) for t in (*found.prompts.values(), *found.kv.values()))
    words = f'score of {name} {found.gain:+.2f} over an empty picture'
    if found.prompts or found.kv:
        words += f'{" without prompts" if found.prompts else ""}: picture {float(found.grid.sum()):+.2f}, ' \
                 f'{"prompts" if found.prompts else "keys"} {of_prompts:+.2f}'
    if abs(found.gain - found.total) >= .005:
        words += f', lost between the steps {found.gain - found.total:+.2f}'
    if maps.attention is not None and maps.attention[-1].prompts > 1e-6:
        words += f'; {100 * maps.attention[-1].prompts:.0f} % of the attention in the last block is theirs'
    return words


def draw_prompts(maps: Sequence[Maps], file: Any) -> bool:
    """Mean attribution of every prompt in every block, as an SVG; False where there are none.

    Args:
        maps: Of some samples.
        file: Receives the SVG.
    """
    kinds: Dict[str, List[Dict[int, torch.Tensor]]] = {
        'prompts': [m.attribution.prompts for m in maps], 'further keys': [m.attribution.kv for m in maps]}
    kinds = {name: found for name, found in kinds.items() if any(found)}
    if not kinds:
        return False
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    figure = Figure(figsize=(5.2 * len(kinds), 3.4), layout='constrained')
    FigureCanvasSVG(figure)
    for axes, (name, found) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds.items()):
        blocks = sorted({i for one in found for i in one})
        table = np.full((len(blocks), max(len(one[i]) for one in found for i in one)), np.nan)
        for row, i in enumerate(blocks):
            mean = torch.stack([one[i] for one in found if i in one]).mean(0).numpy()
            table[row, :len(mean)] = mean
        largest = max(float(np.nanmax(np.abs(table))), 1e-12)
        shown = axes.imshow(table, cmap='RdBu_r', vmin=-largest, vmax=largest, aspect='auto', interpolation='nearest')
        axes.set_yticks(range(len(blocks)), blocks)
        axes.set_xlabel(f'{name}: number')
        axes.set_ylabel('block')
        figure.colorbar(shown, label='adds to the score')
    figure.savefig(file, format='svg', metadata={'Date': None})
    return True
