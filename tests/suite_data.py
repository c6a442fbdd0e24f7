# SPDX-License-Identifier: Apache-2.0
"""Tiny data sets of the published forms, for tests: real file formats, a handful of images."""

import io
import json
import os
import zipfile
from typing import Dict, Iterable, List, Tuple

import numpy as np
from PIL import Image

from mmpetl.datasets.tables import get_task


def image_bytes(label: int, index: int, size: Tuple[int, int] = (20, 16), fmt: str = 'PNG') -> bytes:
    """A noise image whose brightness follows its label, so that it can be learnt."""
    rng = np.random.default_rng([label, index])
    pixels = np.clip(rng.normal(40 + 25 * (label % 8), 20, (*size, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, fmt)
    return buffer.getvalue()


def put(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
        file.write(data)


def put_text(path: str, lines: Iterable[str]) -> None:
    put(path, ('\n'.join(lines) + '\n').encode())


def write_vtab(root: str, task: str, counts: Dict[str, int], form: str = 'txt', suite: str = 'vtab') -> None:
    """Lists and images of one VTAB-1k task; ``counts`` gives train800, val200 and test."""
    classes = get_task(suite, task).num_classes
    folder = os.path.join(root, task)
    rows: Dict[str, List[Tuple[str, int]]] = {}
    for part, count in counts.items():
        rows[part] = [(f'{part}/{i:06d}.png', i % classes) for i in range(count)]
        for i, (name, label) in enumerate(rows[part]):
            put(os.path.join(folder, 'images', name), image_bytes(label, 10000 * len(rows) + i))
    rows['train800val200'] = rows.get('train800', []) + rows.get('val200', [])
    for part, entries in rows.items():
        if form == 'txt':
            put_text(os.path.join(folder, f'{part}.txt'), [f'images/{name} {label}' for name, label in entries])
        elif part in ('train800val200', 'test'):
            put(os.path.join(folder, f'{part}.json'), json.dumps([{name: label} for name, label in entries]).encode())


def write_fgvc(root: str, task: str, per_class: Dict[str, int], first_id: int = 1) -> None:
    """VPT's json lists and images of one FGVC data set; ids begin at ``first_id`` and skip every third number."""
    spec = get_task('fgvc', task)
    ids = [first_id + i + i // 2 for i in range(spec.num_classes)]
    for part, count in per_class.items():
        rows = {}
        for c, label in enumerate(ids):
            for k in range(count):
                name = f'class_{label}/{part}_{k}.png'
                rows[name] = label
                put(os.path.join(root, task, spec.images, name), image_bytes(c, k, (40, 30)))
        put(os.path.join(root, task, f'{part}.json'), json.dumps(rows).encode())


def write_elevater(root: str, task: str, per_class: Dict[str, int], zipped: bool = True, suite: str = 'elevater') -> None:
    """Index files and zip files (or unpacked folders) of one ELEVATER data set, in that data set's own format."""
    spec = get_task(suite, task)
    folder = os.path.join(root, spec.directory)
    for part, count in per_class.items():
        images, labels = [], []
        for k in range(count):
            for c in range(spec.num_classes):
                images.append((f'{part} images/{c}_{k}.png', image_bytes(c, k, (30, 24))))
                labels.append([c, (c + 1) % spec.num_classes] if spec.multi_label and k % 2 else [c])
        if zipped:
            os.makedirs(folder, exist_ok=True)
            with zipfile.ZipFile(os.path.join(folder, f'{part}.zip'), 'w') as archive:
                for name, data in images:
                    archive.writestr(name, data)
        else:
            for name, data in images:
                put(os.path.join(folder, part, name), data)
        path = os.path.join(folder, spec.splits[part].files[0])
        if path.endswith('.txt'):
            put_text(path, [f'{part}.zip@{name} {",".join(map(str, ids))}' for (name, _), ids in zip(images, labels)])
        else:
            put(path, json.dumps(_coco(part, images, labels, spec.num_classes)).encode())
    if spec.classes_file:
        put_text(os.path.join(folder, spec.classes_file), [f'class {c}' for c in range(spec.num_classes)])


def _coco(part: str, images: list, labels: list, num_classes: int) -> dict:
    """COCO form with category ids from 1 upwards, listed backwards, and images listed backwards."""
    return dict(
        images=[dict(id=i + 1, file_name=name, zip_file=f'{part}.zip') for i, (name, _) in enumerate(images)][::-1],
        annotations=[dict(id=i + 1, image_id=i + 1, category_id=c + 1) for i, ids in enumerate(labels) for c in ids],
        categories=[dict(id=c + 1, name=f'class {c}') for c in range(num_classes)][::-1])
