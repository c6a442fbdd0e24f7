# SPDX-License-Identifier: Apache-2.0
"""VTAB-1k from the plain image release, without TensorFlow."""

import os

from mmengine.logging import print_log

from ..registry import DATASETS
from .lists import Entries, read_entry_list, read_text
from .suite_dataset import SuiteDataset
from .tables import VTAB


@DATASETS.register_module()
class VTAB1k(SuiteDataset):
    """A VTAB-1k task: lists 'train800', 'val200', 'train800val200', 'test' as ``.txt`` or ``.json``.

    ``train800val200`` is the concatenation of the two others. Where a release ships only that one, its first 800 and
    last 200 entries stand in for them, and the log says so.
    """

    SUITE = VTAB

    def read_split(self, split: str) -> Entries:
        """Entries of one list; see :class:`SuiteDataset`."""
        part = split in ('train800', 'val200')
        path = self.list_path(split, optional=part and bool(self.list_path('train800val200', optional=True)))
        if path:
            return self._read(path)
        whole = self._read(self.list_path('train800val200'))
        print_log(
            f'{self.task.name}: no list {split!r}; taking it from the '
            f'{"first 800" if split == "train800" else "last 200"} of the '
            f'{len(whole)} entries of train800val200',
            logger='current')
        if len(whole) != 1000:
            raise ValueError(
                f'{self.list_path("train800val200")} has {len(whole)} entries, not 1000: {split!r} cannot be cut from '
                f'it'
            )
        return whole[:800] if split == 'train800' else whole[800:]

    def _read(self, path: str) -> Entries:
        if path.endswith('.txt'):
            return read_text(path)
        # Names in the json lists are relative to images/, unless the release says otherwise.
        entries = read_entry_list(path)
        if entries and not os.path.isfile(self.locate(entries[0][0])):
            entries = [(f'images/{name}', labels) for name, labels in entries]
        return entries
