# SPDX-License-Identifier: Apache-2.0
"""Data sets that are folders: one folder per class, its name is the class."""

import os
from typing import Dict, Iterator, List, Sequence, Tuple

from .how_to_get import and_get

#: Suffixes of the pictures that are read.
PICTURES = ('.jpg', '.jpeg', '.jfif', '.png', '.ppm', '.pgm', '.pbm', '.bmp', '.tif', '.tiff', '.webp', '.gif', '.jp2',
            '.npy', '.npz', '.dcm', '.dicom')
#: Suffixes of the videos that are read.
VIDEOS = ('.mp4', '.avi', '.mkv', '.webm', '.mov', '.m4v', '.mpg', '.mpeg', '.wmv', '.flv', '.ts', '.3gp', '.ogv')
#: Folders that lie side by side and have the same classes, though one may lack some.
SPLITS = ('train', 'trainval', 'val', 'valid', 'validation', 'test')
#: Folders that programs leave behind.
_LEFT_BEHIND = ('__macosx', '__pycache__', '@eadir', 'lost+found', '$recycle.bin', 'system volume information')


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the data: ``.ipynb_checkpoints``, ``._a.jpg``, ``__MACOSX`` and the like."""
    return name.startswith('.') or name.lower() in _LEFT_BEHIND


def subfolders(folder: str) -> List[str]:
    """Names of the folders in ``folder``, sorted, hidden ones left out.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f'data folder {folder} does not exist{and_get(folder)}')
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not is_hidden(e.name))


def files_below(folder: str, suffixes: Sequence[str] = PICTURES) -> Iterator[str]:
    """Paths of the files of these suffixes anywhere below ``folder``, relative to it, sorted."""
    found = []
    for root, names, files in os.walk(folder, followlinks=True):
        names[:] = [n for n in names if not is_hidden(n)]
        found += [os.path.relpath(os.path.join(root, f), folder) for f in files
                  if not is_hidden(f) and f.lower().endswith(tuple(suffixes))]
    return iter(sorted(found))


def class_names(folder: str) -> Tuple[str, ...]:
    """Names of the class folders in ``folder``, sorted as text; where it is one of ``train``, ``val``, ``test`` side by
    side, those of all of them together, so that a class means the same in each.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no folder.
    """
    folder = os.path.abspath(folder)
    names = set(subfolders(folder))
    if not names:
        raise ValueError(f'{folder} holds no class folders: make one folder per class in it, or set ann_file to a list')
    parent, own = os.path.split(folder)
    if own in SPLITS:
        for other in SPLITS:
            if os.path.isdir(os.path.join(parent, other)):
                names.update(subfolders(os.path.join(parent, other)))
    return tuple(sorted(names))


def find_samples(folder: str, classes: Sequence[str], suffixes: Sequence[str] = PICTURES) -> Dict[str, List[str]]:
    """The files of each class, relative to ``folder``; a class without a folder has none.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a folder is none of the classes, or there is no file at all.
    """
    names = subfolders(folder)
    strange = [name for name in names if name not in classes]
    if strange:
        raise ValueError(f'the folder {os.path.join(folder, strange[0])} is none of the {len(classes)} classes '
                         f'({", ".join(list(classes)[:5])}{", ..." if len(classes) > 5 else ""}): move it away, or add '
                         'its name to the classes')
    found = {name: [os.path.join(name, file) for file in files_below(os.path.join(folder, name), suffixes)]
             if name in names else [] for name in classes}
    if not any(found.values()):
        raise ValueError(f'{folder} holds no file with one of the suffixes {", ".join(suffixes)}')
    return found
