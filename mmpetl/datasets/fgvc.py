# SPDX-License-Identifier: Apache-2.0
"""FGVC from VPT's json splits."""

from typing import Any, Dict

from ..registry import DATASETS
from .lists import Entries, contiguous_ids, read_mapping
from .suite_dataset import SuiteDataset
from .tables import FGVC as SUITE


@DATASETS.register_module()
class FGVC(SuiteDataset):
    """A fine-grained data set: lists 'train', 'val', 'test' as ``{relative image path: class id}``.

    Class ids are made contiguous over the union of the three lists, so that they mean the same in each of them.
    'trainval' is train followed by val.
    """

    SUITE = SUITE

    def splits(self) -> tuple:
        """The three lists and their union for a last training run."""
        return (*super().splits(), 'trainval')

    def read_split(self, split: str) -> Entries:
        """Entries of one list; see :class:`SuiteDataset`.

        Raises:
            ValueError: If the lists together name another number of classes than the data set has.
        """
        lists: Dict[str, Dict[str, Any]] = {s: read_mapping(self.list_path(s)) for s in self.task.splits}
        ids = contiguous_ids(lists.values())
        if len(ids) != self.task.num_classes:
            raise ValueError(
                f'{self.data_root}: train.json, val.json and test.json name {len(ids)} classes together, but '
                f'{self.task.name!r} has {self.task.num_classes}')
        parts = ('train', 'val') if split == 'trainval' else (split,)
        return [(name, [ids[label]]) for part in parts for name, label in lists[part].items()]
