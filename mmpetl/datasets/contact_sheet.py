# SPDX-License-Identifier: Apache-2.0
"""A picture of samples as the model sees them, to look at before training."""

from typing import List, Sequence, Tuple

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw

from ..weights.io import atomic_write

SIDE, TEXT, GAP = 160, 28, 6


def as_picture(sample: np.ndarray) -> np.ndarray:
    """What a pipeline packs as (H, W, 3) in 0..255, channels as they are.

    A clip (V, 3, T, H, W) or (V, T, 3, H, W) becomes its first, middle and last frame side by side.

    Args:
        sample: (3, H, W), or views of a clip; any kind of number.

    Raises:
        ValueError: If it is neither.
    """
    values = np.asarray(sample)
    if values.ndim == 5:
        values = values[0] if values.shape[1] == 3 else rearrange(values[0], 't c h w -> c t h w')
        chosen = sorted({0, values.shape[1] // 2, values.shape[1] - 1})
        values = rearrange(values[:, chosen], 'c t h w -> c h (t w)')
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ValueError(f'a sample of shape {values.shape} is neither a picture (3, height, width) nor a clip')
    if values.dtype != np.uint8:  # normalised in the pipeline: stretch
        low, high = float(values.min()), float(values.max())
        values = (values - low) * (255 / max(high - low, 1e-9))
    values = np.broadcast_to(values, (3, *values.shape[1:]))
    return np.ascontiguousarray(rearrange(values, 'c h w -> h w c')).astype(np.uint8)


def spread(labels: Sequence[int], count: int) -> List[int]:
    """Positions of ``count`` samples: one of each class after the other, then second ones, and so on."""
    seen: dict = {}
    order = []
    for position, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        order.append((seen[label], label, position))
    return [position for _, _, position in sorted(order)[:count]]


def contact_sheet(samples: Sequence[Tuple[np.ndarray, str]], columns: int = 6) -> Image.Image:
    """Pictures in rows with a line of text under each.

    Args:
        samples: (H, W, 3) uint8 in RGB, and the text.
        columns: Pictures in a row.
    """
    wide = any(picture.shape[1] > 2 * picture.shape[0] for picture, _ in samples)
    width, columns = (SIDE * 3, max(1, columns // 3)) if wide else (SIDE, columns)
    rows = -(-len(samples) // columns)
    sheet = Image.new('RGB', (columns * (width + GAP) + GAP, rows * (SIDE + TEXT + GAP) + GAP), 'white')
    draw = ImageDraw.Draw(sheet)
    for i, (picture, text) in enumerate(samples):
        left, top = GAP + i % columns * (width + GAP), GAP + i // columns * (SIDE + TEXT + GAP)
        image = Image.fromarray(picture)
        scale = min(width / image.width, SIDE / image.height)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        sheet.paste(image, (left + (width - image.width) // 2, top + (SIDE - image.height) // 2))
        letters = width // 7  # Pillow's own font takes 5 pixels a letter on average, 10 at most
        draw.text((left, top + SIDE + 4), text if len(text) <= letters else text[:letters - 3] + '...', fill='black')
    return sheet


def write_sheet(path: str, sheet: Image.Image) -> None:
    """Write a PNG file, which appears only when it is complete."""
    atomic_write(path, lambda file: sheet.save(file, 'PNG'))
