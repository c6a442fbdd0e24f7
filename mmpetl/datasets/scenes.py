# SPDX-License-Identifier: Apache-2.0
"""Scenes6: a small task of semantic segmentation.

Drawings of six classes lie on a striped sheet; every pixel belongs to a class or to the sheet. People drew them, the
scenes are composed: no photographs.
"""

from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from ..weights.reading import read_text
from . import fetch
from .motion_clips import ORIGIN
from .video_lists import write_text

SIZE = 224
#: Raised when the files that are written change, so that older ones are made again.
RECIPE = 1
CLASSES = 6
#: Part -> list of quickdraw20 whose drawings it shows.
_SOURCES = dict(train='fit', val='val', test='test')


def silhouette(drawing: np.ndarray) -> np.ndarray:
    """The area that a drawing covers: its strokes, thickened so that small gaps close, and all that they enclose.

    Args:
        drawing: (H, W) uint8, dark strokes on white.

    Returns:
        (H, W) uint8, 1 inside.
    """
    import cv2
    strokes = cv2.dilate((drawing < 160).astype(np.uint8), np.ones((5, 5), np.uint8))
    outlines, _ = cv2.findContours(strokes, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.drawContours(np.zeros_like(strokes), outlines, -1, 1, cv2.FILLED)


def compose(drawings: List[Tuple[np.ndarray, int]], rng: np.random.Generator) -> Tuple[np.ndarray, np.ndarray]:
    """One scene.

    Args:
        drawings: Pictures (28, 28) uint8 with dark strokes on white, and their labels from 1 on; later ones cover
            earlier ones.
        rng: Source of places, sizes, angles and colours.

    Returns:
        Picture (SIZE, SIZE, 3) uint8, RGB, and labels (SIZE, SIZE) uint8, 0 for the sheet.
    """
    import cv2
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    wave = np.sin((x * np.cos(a := rng.uniform(0, np.pi)) + y * np.sin(a)) * rng.uniform(0.1, 0.5))
    sheet = rng.integers(60, 220, 3) + wave[..., None] * rng.uniform(5, 35, 3)
    image, labels = np.clip(sheet, 0, 255), np.zeros((SIZE, SIZE), np.uint8)
    for drawing, label in drawings:
        large = cv2.resize(drawing, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        matrix = cv2.getRotationMatrix2D((56., 56.), rng.uniform(-25, 25), rng.uniform(0.6, 1.1))
        matrix[:, 2] += rng.uniform(45, SIZE - 45, 2) - 56
        inside = cv2.warpAffine(silhouette(large), matrix, (SIZE, SIZE), flags=cv2.INTER_NEAREST)
        strokes = cv2.warpAffine(255 - large, matrix, (SIZE, SIZE))[..., None] / 255.
        body, ink = rng.integers(120, 256, 3), rng.integers(0, 90, 3)
        painted = body * (1 - strokes) + ink * strokes
        image = np.where(inside[..., None] == 1, painted, image)
        labels[inside == 1] = label
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8), labels


def prepare_scenes(target: Path, source: Path, counts: Dict[str, int]) -> Path:
    """The scenes from the drawings of quickdraw20; what is there already, made in the same way, is kept.

    Args:
        target: Folder of the scenes: ``images/<part>/*.jpg``, ``labels/<part>/*.png``, ``classes.txt``.
        source: Folder of quickdraw20.
        counts: Part ('train', 'val', 'test') -> number of scenes. Each part has drawings of its own.
    """
    def fill(folder: Path) -> Dict[str, Any]:
        import cv2
        names = read_text(source / 'classes.txt').split('\n')[:CLASSES]
        for number, (part, count) in enumerate(sorted(counts.items())):
            listed = [line.rsplit(' ', 1) for line in read_text(source / f'{_SOURCES[part]}.txt').splitlines()]
            pool = [(str(source / path), int(label)) for path, label in listed if int(label) < CLASSES]
            for kind in ('images', 'labels'):
                (folder / kind / part).mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([number, i])
                chosen = [pool[k] for k in rng.choice(len(pool), rng.integers(2, 5), replace=False)]
                drawings = [(cv2.imread(path, cv2.IMREAD_GRAYSCALE), label + 1) for path, label in chosen]
                image, labels = compose(drawings, rng)  # type: ignore
                jpeg = str(folder / f'images/{part}/{i:04d}.jpg')
                cv2.imwrite(jpeg, image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
                cv2.imwrite(str(folder / f'labels/{part}/{i:04d}.png'), labels)
        write_text(str(folder / 'classes.txt'), '\n'.join(['sheet', *names]) + '\n')
        return {}

    return fetch.made_once(target, dict(recipe=RECIPE, counts=counts, origin=ORIGIN), fill)
