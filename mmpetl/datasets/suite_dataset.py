# SPDX-License-Identifier: Apache-2.0
"""Base of the suites' datasets: a task of the table, one of its lists, and where its images lie."""

import os
from typing import Any, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from mmpretrain.datasets.base_dataset import BaseDataset

from ..sites import nearest
from .how_to_get import how_to_get
from .list_files import read_lines
from .lists import Entries, below, check_labels, first_existing
from .tables import Suite, Task, get_suite, get_task


def how_to_mend(suite: Suite, task: str, root: str) -> str:
    """What to do about data of ``task`` ('' for all) that are missing below the suite's folder ``root``: the command,
    and what must be there in the end."""
    name = suite.name if suite.name == 'vtab' or not task else f'{suite.name}/{task}'
    command = how_to_get(os.path.join(root, task), name, root)
    return f'{command}; by hand: {suite.hint}' if command else suite.hint


class SuiteDataset(BaseDataset):
    """A task of a benchmark suite as a mmpretrain dataset.

    A subclass sets :attr:`SUITE` and reads the lists in :meth:`read_split`. Every item has ``img_path`` and
    ``gt_label``; in a multi-label task ``gt_label`` is a list and ``gt_score`` the (C,) indicator.

    Args:
        task: Key of the task, see :mod:`mmpetl.datasets.tables`.
        split: Name of the list.
        data_root: Folder of the suite; the task's folder lies in it.
        pipeline: Transforms.
        test_mode: See :class:`mmengine.dataset.BaseDataset`.
        classes: Names of the classes; taken from the task's own file, or their numbers where there is none.
        suite: The ``.json`` file of a suite of one's own; default the published suite of this class.
        **kwargs: Other arguments of :class:`mmpretrain.datasets.BaseDataset`.

    Raises:
        ValueError: If the task or the split is unknown, or a list is malformed.
        FileNotFoundError: If the list is missing; the message says where it is looked for.
    """

    SUITE: Suite

    def __init__(self,
                 task: str,
                 split: str,
                 data_root: str = '',
                 pipeline: Sequence[Any] = (),
                 test_mode: bool = False,
                 classes: Union[Sequence[str], str, None] = None,
                 suite: Optional[str] = None,
                 **kwargs: Any) -> None:
        self.suite: Suite = get_suite(suite) if suite else self.SUITE
        if self.suite.form != self.SUITE.form:
            raise ValueError(
                f'{type(self).__name__} reads suites of the form {self.SUITE.form!r}, {self.suite.title} has the form '
                f'{self.suite.form!r}')
        self.task: Task = get_task(self.suite, task)
        self.split = split
        if split not in self.splits():
            raise ValueError(f'{self.suite.title} {task!r} has no list {split!r}' + nearest(split, self.splits()))
        #: Folder of the suite, in which the task's folder lies.
        self.root = os.path.expanduser(data_root or self.suite.root)
        folder = self.task.locate(self.root)
        super().__init__(
            ann_file='',
            data_root=folder,
            data_prefix=self.task.images,
            pipeline=pipeline,
            test_mode=test_mode,
            classes=classes or self._class_names(folder),
            **kwargs)
        # Not given to the base class, which takes strings for names of files.
        self._metainfo.update(
            suite=self.suite.name, task=task, num_classes=self.task.num_classes, metric=self.task.metric)

    def splits(self) -> Tuple[str, ...]:
        """Lists that can be asked for."""
        return tuple(self.task.splits)

    def read_split(self, split: str) -> Entries:
        """``[(image name, labels)]`` of one list."""
        raise NotImplementedError

    def list_path(self, split: str, optional: bool = False) -> str:
        """The list file of ``split``, or '' where it is missing and ``optional``.

        Raises:
            FileNotFoundError: If no list file of that split exists.
        """
        files = self.task.splits[split].files
        path = first_existing(self.data_root, files)
        if not path and not optional:
            raise FileNotFoundError(
                f'{os.path.join(self.data_root, files[0])} is missing (list {split!r} of {self.suite.title} '
                f'{self.task.name!r}): {how_to_mend(self.suite, self.task.name, self.root)}')
        return path

    def locate(self, name: str) -> str:
        """Path of an image, from its name in a list."""
        return os.path.join(self.img_prefix, name)

    def load_data_list(self) -> List[Mapping[str, Any]]:
        """Called by MMEngine; one dict per image."""
        entries = self.read_split(self.split)
        if not entries:
            raise ValueError(f'{self._source()} lists no image')
        check_labels(entries, self.task.num_classes, self._source(), self.task.multi_label)
        for name, _ in entries:
            below(self.img_prefix or '.', name, self._source())
        return [dict(img_path=self.locate(name), **self._target(labels)) for name, labels in entries]

    def get_cat_ids(self, idx: int) -> List[int]:
        """Class ids of one image."""
        labels = self.get_data_info(idx)['gt_label']
        return list(labels) if self.task.multi_label else [int(labels)]

    def _source(self) -> str:
        return self.list_path(
            self.split, optional=True) if self.split in self.task.splits else f'{self.data_root} ({self.split})'

    def _target(self, labels: List[int]) -> dict:
        if not self.task.multi_label:
            return dict(gt_label=labels[0])
        score = np.zeros(self.task.num_classes, np.float32)
        score[labels] = 1
        return dict(gt_label=labels, gt_score=score)

    def _class_names(self, folder: str) -> Tuple[str, ...]:
        """One name a line from the task's class file; numbers where it is missing.

        Raises:
            ValueError: If the file holds another number of names than the task has classes.
        """
        path = os.path.join(folder, self.task.classes_file) if self.task.classes_file else ''
        if not os.path.isfile(path):
            return tuple(str(i) for i in range(self.task.num_classes))
        names = [line.strip() for line in read_lines(path) if line.strip()]
        if len(names) != self.task.num_classes:
            raise ValueError(f'{path} names {len(names)} classes, but {self.task.name!r} has {self.task.num_classes}')
        return tuple(names)
