# SPDX-License-Identifier: Apache-2.0
"""Four small real data sets in the file forms of VTAB-1k and ELEVATER, made from packages that anyone can fetch.

============  =======  ===============  =====================================================================
task          classes  training / test  images
============  =======  ===============  =====================================================================
quickdraw     20       800 + 200 / 600  Quick, Draw!, 28 x 28, dark strokes on white
digits        10       800 + 200 / 500  scikit-learn's digits, 8 x 8, dark on white
pneumonia     2        800 + 200 / 500  chest X-rays, 224 x 224, out of the package's training and test folders
dsprites_loc  16       800 + 200 / 600  dSprites, 64 x 64, horizontal position by VTAB's label rule, at random
============  =======  ===============  =====================================================================

``vtab/<task>/`` holds ``train800.txt``, ``val200.txt``, ``train800val200.txt``, ``test.txt`` and ``images/``;
``elevater/<task>/`` holds the same images as ``train.zip`` (all 1,000) and ``test.zip`` with the index files
``train.txt`` and ``test.txt``.
"""

import json
import math
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import cv2
import numpy as np

from ..weights.guards import SMALL, check_zip
from ..weights.reading import read_arrays
from . import fetch
from .arrays import quickdraw_classes, sklearn_digits
from .label_rules import dsprites_location
from .sources import SOURCES

Say = Callable[[str], None]
#: Raised when the files change, so that older ones are made again.
RECIPE = 1


class Picture(NamedTuple):
    """One image: the bytes of its file, their suffix, its label."""
    data: bytes
    suffix: str
    label: int


class SmallTask(NamedTuple):
    """A data set: class names, and the images of each list."""
    classes: Sequence[str]
    train800: List[Picture]
    val200: List[Picture]
    test: List[Picture]


def png(image: np.ndarray) -> bytes:
    """(H, W) uint8 as a PNG file."""
    done, data = cv2.imencode('.png', image)
    if not done:
        raise ValueError(f'an image of shape {image.shape} cannot be encoded as PNG')
    return data.tobytes()


def by_class(name: str, classes: Sequence[str], pictures: Sequence[Sequence[Tuple[bytes, str]]],
             tests: Sequence[Sequence[Tuple[bytes, str]]], test_count: int) -> SmallTask:
    """Equal numbers of every class: the first for training, the next for validation, and of ``tests`` the first for
    testing.

    Args:
        name: Of the task, for messages.
        classes: Class names in the order of labels.
        pictures: Per class the (bytes, suffix) of those for training and validation, in order.
        tests: The same for testing.
        test_count: Images to test with, of all classes together.

    Raises:
        ValueError: If a class has too few images.
    """
    parts: Dict[str, List[Picture]] = {}
    for part, rows, start, count in (('train800', pictures, 0, 800), ('val200', pictures, 800, 200),
                                     ('test', tests, 0, test_count)):
        first, each = start // len(classes), count // len(classes)
        for label, of_class in enumerate(rows):
            if len(of_class) < first + each:
                raise ValueError(
                    f'{name}: class {classes[label]!r} has {len(of_class)} images, {first + each} are needed')
        parts[part] = [Picture(*rows[label][first + i], label) for i in range(each) for label in range(len(classes))]
    return SmallTask(classes, **parts)


# -- the four data sets -----------------------------------------------------------------------------------------------


def quickdraw(say: Say = print) -> SmallTask:
    """The 20 classes of the quickstart; per class drawings 0..49 for training and validation, 70..99 for testing."""
    drawings = quickdraw_classes(say)
    names = sorted(drawings)
    files = [[(png(image), '.png') for image in drawings[name]] for name in names]
    return by_class('quickdraw', names, [f[:50] for f in files], [f[70:] for f in files], 600)


def digits(say: Say = print) -> SmallTask:
    """scikit-learn's digits; per class the first 100 for training and validation, the next 50 for testing."""
    stacks = sklearn_digits()
    files = [[(png(image), '.png') for image in stack] for stack in stacks]
    return by_class('digits', [str(i) for i in range(10)], [f[:100] for f in files], [f[100:] for f in files], 500)


def pneumonia(say: Say = print) -> SmallTask:
    """Chest X-rays, normal or pneumonia: the first files of the package's training and test folders by name, as they
    are."""
    source = SOURCES['xray']
    classes = ('NORMAL', 'PNEUMONIA')
    found: Dict[Tuple[str, str], List[Tuple[str, bytes]]] = {
        (part, c): []
        for part in ('train', 'test')
        for c in classes
    }
    for name, read in fetch.members(source, fetch.archive(source, say)):
        part, _, rest = name.partition('/')
        kind, _, file = rest.partition('/')
        if (part, kind) in found and file.endswith('.jpeg'):
            found[part, kind].append((file, read()))
    files = {key: [(data, '.jpeg') for _, data in sorted(rows)] for key, rows in found.items()}
    train = [files['train', c][:500] for c in classes]
    # one of the package's test files is byte for byte in its training folder
    seen = {data for rows in train for data, _ in rows}
    test = [[row for row in files['test', c] if row[0] not in seen] for c in classes]
    return by_class('pneumonia', [c.lower() for c in classes], train, test, 500)


def stored_rows(path: Path, name: str, rows: Sequence[int]) -> Iterator[np.ndarray]:
    """Rows (ascending) of an array of an ``.npz`` file, read one after the other: dSprites unpacks to 3 GB.

    Raises:
        ValueError: If the array is missing, not of plain numbers in C order, shorter than a row asked for, or a row
            takes more than 64 MiB.
    """
    check_zip(str(path), Path(path).stat().st_size, read=())  # no member is ever whole in memory
    with zipfile.ZipFile(path) as bundle:
        if f'{name}.npy' not in bundle.namelist():
            raise ValueError(f'{path} has no array {name!r}')
        with bundle.open(f'{name}.npy') as file:
            version = np.lib.format.read_magic(file)
            form = np.lib.format
            read_header = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
            shape, fortran, dtype = read_header(file)
            if fortran or dtype.hasobject or not shape:
                raise ValueError(f'{path}: the array {name!r} is not one of plain numbers in C order')
            if rows and rows[-1] >= shape[0]:
                raise ValueError(f'{path}: the array {name!r} has {shape[0]} rows, row {rows[-1]} is asked for')
            size = math.prod(shape[1:]) * dtype.itemsize
            if size > SMALL:
                raise ValueError(f'{path}: a row of the array {name!r} takes {size:,} bytes')
            at = 0
            for row in rows:
                while at < row * size:
                    at += len(file.read(min(row * size - at, 1 << 24))) or _ended(path, name)
                yield np.frombuffer(file.read(size), dtype).reshape(shape[1:])
                at += size


def _ended(path: Path, name: str) -> int:
    raise ValueError(f'{path}: the array {name!r} ends too early')


def dsprites_loc(say: Say = print) -> SmallTask:
    """dSprites: 1,600 of the 737,280 images at random (seed 0), in 16 classes of horizontal position."""
    name = fetch.get_source('dsprites').members.split('/')[-1]
    path = fetch.extract('dsprites', say) / name
    positions = read_arrays(path, ['latents_classes'])['latents_classes'][:, 4]
    chosen = np.random.RandomState(0).permutation(len(positions))[:1600].tolist()
    images = dict(zip(sorted(chosen), stored_rows(path, 'imgs', sorted(chosen))))
    pictures = [
        Picture(png(images[i] * np.uint8(255)), '.png', dsprites_location({'label_x_position': positions[i]}))
        for i in chosen
    ]
    return SmallTask([f'x{i}' for i in range(16)], pictures[:800], pictures[800:1000], pictures[1000:])


TASKS: Dict[str, Tuple[Callable[[Say], SmallTask], str]] = {
    'quickdraw': (quickdraw, 'quickdraw'), 'digits': (digits, ''), 'pneumonia': (pneumonia, 'xray'),
    'dsprites_loc': (dsprites_loc, 'dsprites')}


# -- the two forms ----------------------------------------------------------------------------------------------------


def write_vtab(folder: Path, task: SmallTask) -> None:
    """Write a task in VTAB-1k's form."""
    lines: Dict[str, List[str]] = {}
    for part in ('train800', 'val200', 'test'):
        (folder / 'images' / part).mkdir(parents=True)
        lines[part] = []
        for number, picture in enumerate(getattr(task, part)):
            name = f'images/{part}/{number:06d}{picture.suffix}'
            (folder / name).write_bytes(picture.data)
            lines[part].append(f'{name} {picture.label}')
    lines['train800val200'] = lines['train800'] + lines['val200']
    for part, rows in lines.items():
        (folder / f'{part}.txt').write_text('\n'.join(rows) + '\n')
    (folder / 'classes.txt').write_text('\n'.join(task.classes) + '\n')


def write_elevater(folder: Path, task: SmallTask) -> None:
    """Write a task in ELEVATER's form: zip files, and index files with lines ``train.zip@name label``."""
    folder.mkdir(parents=True)
    for part, pictures in (('train', task.train800 + task.val200), ('test', task.test)):
        lines = []
        with zipfile.ZipFile(folder / f'{part}.zip', 'w') as archive:
            for number, picture in enumerate(pictures):
                name = f'{number:06d}{picture.suffix}'
                # without the time of day: equal bytes on every machine
                archive.writestr(zipfile.ZipInfo(name), picture.data)
                lines.append(f'{part}.zip@{name} {picture.label}')
        (folder / f'{part}.txt').write_text('\n'.join(lines) + '\n')
    (folder / 'classes.txt').write_text('\n'.join(task.classes) + '\n')


def small_suite(target: Path, say: Say = print) -> None:
    """Four small real data sets (drawings, digits, X-rays, sprites), 800 + 200 training images each, in VTAB's and
    ELEVATER's forms."""
    def fill(folder: Path) -> None:
        about: Dict[str, Any] = {'recipe': RECIPE, 'tasks': {}}
        for name, (make, source) in TASKS.items():
            task = make(say)
            write_vtab(folder / 'vtab' / name, task)
            write_elevater(folder / 'elevater' / name, task)
            origin = SOURCES[source] if source else None
            about['tasks'][name] = dict(
                images={part: len(getattr(task, part))
                        for part in ('train800', 'val200', 'test')},
                classes=len(task.classes),
                package=origin.pinned if origin else 'scikit-learn',
                licence=origin.licence if origin else 'CC BY 4.0 (UCI)')
            say(f'small-suite: {name} is written')
        (folder / 'about.json').write_text(json.dumps(about, indent=2) + '\n')

    fetch.into_folder(target, fill)
