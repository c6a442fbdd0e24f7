# SPDX-License-Identifier: Apache-2.0
"""Images named by a list file or lying in class folders, with errors that name the file and the line."""

import logging
import os.path as osp
from typing import Any, List, Sequence, Union

from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset

from ..registry import DATASETS
from .folders import PICTURES, class_names, files_below, find_samples
from .how_to_get import and_get, how_to_get
from .list_files import Row, read_names, read_rows
from .lists import below
from .loading import split_member


@DATASETS.register_module()
class ListDataset(CustomDataset):
    """mmpretrain's ``CustomDataset`` that checks what it is given.

    With ``ann_file`` the images are those of a list, one ``path label`` a line (every form of
    :func:`mmpetl.datasets.list_files.read_rows`). Without, ``data_prefix`` holds one folder per class, and the sorted
    names of the folders are the classes; folders ``train``, ``val`` and ``test`` side by side have the same classes,
    though one of them may lack some. Hidden folders do not count.

    Upstream trains on any label: one outside the classes becomes an index error of the loss or, on a GPU, an assert
    that ends the process. With :class:`~mmpetl.datasets.loading.LoadImage` an unreadable image is named as well.

    Args:
        ann_file: List file, relative to ``data_root``; '' for class folders.
        data_root: Folder of the data set; ``~`` is expanded.
        data_prefix: Folder of the images, relative to ``data_root``.
        classes: Class names; or a file with one name a line, or a folder of class folders, relative to ``data_root``.
            None: of a list every label >= 0 is taken, and class folders give the names themselves.
        with_label: False for images without labels, for prediction: lines are paths, a folder is searched through.
        first_label: 1 for lists whose labels start at 1.
        extensions: Suffixes of the images in folders.
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``.

    Raises:
        FileNotFoundError: If the folder, the list, the class file or the first image of the list is missing.
        ValueError: If a line cannot be read, a label lies outside the classes, or a folder is none of them.
    """

    def __init__(self, ann_file: str = '', data_root: str = '', data_prefix: Union[str, dict] = '',
                 classes: Union[str, Sequence[str], None] = None, with_label: bool = True, first_label: int = 0,
                 extensions: Sequence[str] = PICTURES, **kwargs: Any) -> None:
        data_root = osp.expanduser(data_root)
        if data_root and not osp.isdir(data_root):
            raise FileNotFoundError(f'data folder {data_root} does not exist: set data_root; '
                                    + (how_to_get(data_root) or "'mmpetl fetch' lists what can be fetched"))
        if not (ann_file or data_root or data_prefix):
            raise ValueError('ListDataset: set ann_file to a list, or data_root to a folder of class folders')
        if first_label not in (0, 1):
            raise ValueError(f'ListDataset: first_label={first_label!r} is neither 0 nor 1: give one of them')
        self.first_label = first_label
        if isinstance(classes, str):
            place = osp.join(data_root, osp.expanduser(classes))
            classes = class_names(place) if osp.isdir(place) else read_names(place)
        super().__init__(data_root=data_root, data_prefix=data_prefix, ann_file=ann_file, classes=classes,
                         with_label=with_label, extensions=extensions, **kwargs)

    def load_data_list(self) -> List[dict]:
        """``dict(img_path, gt_label)`` for each image; without ``gt_label`` where there are no labels."""
        rows = self._listed() if self.ann_file else self._in_folders()
        label = [dict(gt_label=row.label) if self.with_label else {} for row in rows]
        return [dict(img_path=below(self.img_prefix, row.name, self.ann_file or self.img_prefix), **extra)
                for row, extra in zip(rows, label)]

    def _listed(self) -> List[Row]:
        if not osp.isfile(self.ann_file):
            raise FileNotFoundError(f'list file {self.ann_file} does not exist: set ann_file{and_get(self.ann_file)}')
        rows = read_rows(self.ann_file, self.CLASSES, self.with_label, self.first_label)
        if self.with_label and self.CLASSES is None and min(row.label for row in rows) == 1:
            print_log(f'{self.ann_file}: no image has label 0; labels that start at 1 need first_label=1',
                      logger='current', level=logging.WARNING)
        # a wrong folder is the common mistake; single images are checked as they are read
        first = osp.join(self.img_prefix, rows[0].name)
        if not _there(first) and _there(first.replace('\\', '/')):  # written on Windows
            return [row._replace(name=row.name.replace('\\', '/')) for row in rows]
        if not _there(first):
            raise FileNotFoundError(
                f'{self.ann_file}, line {rows[0].line} lists {first}, which does not exist: set data_root or '
                f'data_prefix{and_get(first)}')
        return rows

    def _in_folders(self) -> List[Row]:
        folder = self.img_prefix
        if not self.with_label:
            rows = [Row(name, -1, 0) for name in files_below(folder, self.extensions)]
            if not rows:
                raise ValueError(f'{folder} holds no file with one of the suffixes {", ".join(self.extensions)}')
            return rows
        if self.CLASSES is None:
            self._metainfo['classes'] = class_names(folder)
        found = find_samples(folder, self.CLASSES, self.extensions)
        empty = [name for name, files in found.items() if not files]
        if empty:
            print_log(f'{folder}: no image of {len(empty)} of {len(found)} classes: {", ".join(empty)}',
                      logger='current', level=logging.WARNING)
        return [Row(name, label, 0) for label, files in enumerate(found.values()) for name in files]


def _there(path: str) -> bool:
    return osp.isfile(split_member(path)[0])
