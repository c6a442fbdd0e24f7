# SPDX-License-Identifier: Apache-2.0
"""Motion6: short clips in which the motion decides the class, and an image transformer that is told the time.

A drawing of Quick, Draw! moves left, right, up or down, grows or shrinks over coloured paper. Every drawing occurs in
every class, and the clips of a pair (left and right, up and down, grow and shrink) are the same frames in opposite
order. A single frame therefore says nothing about the class, and whoever ignores the order of the frames is right about
half of the time at best. Animated drawings, not filmed actions.
"""

import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
import torch

from ..registry import MODELS
from ..weights import convert
from ..weights.io import atomic_write, load_file
from ..weights.reading import read_text
from . import fetch
from .video_lists import write_text, write_video_list

CLASSES = ('left', 'right', 'up', 'down', 'grow', 'shrink')
#: Class -> (motion that is drawn, whether its frames are reversed).
MOTIONS = {
    'right': ('x', False),
    'left': ('x', True),
    'down': ('y', False),
    'up': ('y', True),
    'grow': ('size', False),
    'shrink': ('size', True)
}
HEIGHT, WIDTH, FRAMES, RATE = 96, 128, 24, 12
#: Raised when the files that are written change, so that older ones are made again.
RECIPE = 1
ORIGIN = 'drawings: The Quick, Draw! Dataset (Google, Inc.), CC BY 4.0'


def render(drawing: np.ndarray, motion: str, rng: np.random.Generator) -> np.ndarray:
    """One clip, drawn forwards.

    Place, size, angle and colours are random and have the same distribution for all motions.

    Args:
        drawing: (28, 28) uint8, dark strokes on white.
        motion: 'x' (to the right), 'y' (down) or 'size' (growing).
        rng: Source of the random choices.

    Returns:
        (FRAMES, HEIGHT, WIDTH, 3) uint8, RGB.
    """
    import cv2
    ink, paper = rng.integers(0, 110, 3), rng.integers(170, 256, 3)
    size, angle, amount = rng.uniform(1.3, 2.0), rng.uniform(-20., 20.), rng.uniform(0.8, 1.2)
    x, y = WIDTH / 2 + rng.uniform(-18., 18.), HEIGHT / 2 + rng.uniform(-10., 10.)
    centre = drawing.shape[0] / 2
    frames = []
    for t in np.linspace(-1., 1., FRAMES) * amount:
        matrix = cv2.getRotationMatrix2D((centre, centre), angle, size * (np.exp(0.4 * t) if motion == 'size' else 1.))
        matrix[0, 2] += x + (24. * t if motion == 'x' else 0.) - centre
        matrix[1, 2] += y + (18. * t if motion == 'y' else 0.) - centre
        strokes = cv2.warpAffine(255 - drawing, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)[..., None] / 255.
        frames.append((paper * (1. - strokes) + ink * strokes).astype(np.uint8))
    return np.stack(frames)


def write_mp4(path: Path, frames: np.ndarray) -> None:
    """Write (T, H, W, 3) RGB frames as mp4.

    Raises:
        RuntimeError: If OpenCV cannot encode mp4 here.
    """
    import cv2
    # not H.264, which the OpenCV of PyPI cannot write
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), RATE, (frames.shape[2], frames.shape[1]))
    if not writer.isOpened():
        raise RuntimeError(f'{path}: this OpenCV has no MPEG-4 encoder; install opencv-python from PyPI')
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()


def _drawings(folder: Path, part: str, count: int) -> List[np.ndarray]:
    """Every n-th drawing of a list, so that all of its classes occur."""
    import cv2
    names = [line.rsplit(' ', 1)[0] for line in read_text(folder / f'{part}.txt').splitlines()]
    if len(names) < count:
        raise ValueError(f'{folder / part}.txt has {len(names)} drawings, {count} are needed')
    chosen = names[::len(names) // count][:count]
    return [cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE) for name in chosen]  # type: ignore[misc]


def write_clips(folder: Path, drawings: Mapping[str, Sequence[np.ndarray]], seed: int = 0) -> Dict[str, int]:
    """Write all clips and the lists ``train.csv`` and ``test.csv``.

    Args:
        folder: Where to write.
        drawings: Part -> its drawings; each gives one clip per class.
        seed: Seed of places, sizes, angles and colours.

    Returns:
        Part -> number of clips.
    """
    counts = {}
    for part, images in drawings.items():
        rows: List[Tuple[str, int]] = []
        (folder / part).mkdir(parents=True)
        for number, image in enumerate(images):
            # a generator for each: a clip stays the same whatever the number of others
            forward = {motion: render(image, motion, np.random.default_rng([seed, part == 'test', number, i]))
                       for i, motion in enumerate(('x', 'y', 'size'))}
            for label, name in enumerate(CLASSES):
                motion, reverse = MOTIONS[name]
                rows.append((f'{part}/{number:03d}_{name}.mp4', label))
                write_mp4(folder / rows[-1][0], forward[motion][::-1] if reverse else forward[motion])
        write_video_list(str(folder / f'{part}.csv'), rows)
        counts[part] = len(rows)
    write_text(str(folder / 'classes.txt'), ''.join(f'{name}\n' for name in CLASSES))
    return counts


def prepare_clips(target: Path, source: Path, train: int, test: int) -> Path:
    """The clips from the drawings of quickdraw20; what is there already, made in the same way, is kept.

    Args:
        target: Folder of the clips.
        source: Folder of quickdraw20.
        train: Drawings for training; each gives one clip per class.
        test: Other drawings for testing.
    """
    def fill(folder: Path) -> Dict[str, Any]:
        drawings = {part: _drawings(source, part, count) for part, count in (('train', train), ('test', test))}
        return dict(clips=write_clips(folder, drawings))

    return fetch.made_once(target, dict(recipe=RECIPE, drawings=dict(train=train, test=test), origin=ORIGIN), fill)


def time_code(length: int, dim: int) -> torch.Tensor:
    """Sine-cosine code of time, (length, dim), with zero mean over time and unit standard deviation.

    Wave lengths lie between 2 pi and 20 pi steps, as a clip has few of them.
    """
    channel = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10**((channel - channel % 2) / dim)
    code = torch.where(channel % 2 == 0, angle.sin(), angle.cos())
    code = code - code.mean(0)
    return (code / code.std()).float()


def inflate(image_weights: os.PathLike, backbone: Dict[str, Any], timed: bool) -> Dict[str, torch.Tensor]:
    """DINOv2 ViT-S/14 as a VideoMAE backbone.

    The patch kernel is repeated over the tubelet and divided by its length, the position table is resized and repeated
    over time. As the image model knows no time, the result is blind to the order of the frames; ``timed`` adds a code
    of time to the position table, as large as the code of place.

    Args:
        image_weights: The image model's file.
        backbone: Config of the video backbone.
        timed: Whether to add the code of time.

    Returns:
        State dict of the video backbone.
    """
    model = MODELS.build({**backbone, 'petl': [], 'init_cfg': None})
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    loaded = load_file(image_weights)
    side = backbone['img_size'] // backbone['patch_size']
    steps = shapes['pos_embed'][1] // side**2
    arch = model.petl.family.arch(model)
    state, _ = convert(loaded.get('state_dict', loaded), shapes, arch, grid=(steps, side, side))
    if timed:
        table = state['pos_embed']
        code = time_code(steps, table.shape[-1]) * table.std()
        state['pos_embed'] = table + code.repeat_interleave(side**2, 0)
    return state


def write_weights(path: Path, state: Dict[str, torch.Tensor]) -> None:
    """Write a state dict as ``.safetensors``."""
    from safetensors.torch import save
    data = save({key: value.contiguous() for key, value in state.items()}, metadata={'format': 'pt'})
    atomic_write(path, lambda file: file.write(data))
