# SPDX-License-Identifier: Apache-2.0
"""The 20 ELEVATER data sets from their index files, with the protocol's few-shot subsets."""

import os
from typing import Any, Dict, Tuple

from ..registry import DATASETS
from .fewshot import few_shot_positions, validation_positions
from .lists import Entries, read_coco, read_text
from .loading import split_member
from .suite_dataset import SuiteDataset
from .tables import ELEVATER

#: Images per class that the search sees where a full-shot training set is too big (published for this one task).
SEARCH_SHOTS = {'patch-camelyon': 10000}


@DATASETS.register_module()
class Elevater(SuiteDataset):
    """An ELEVATER task.

    Besides the index files ('train', 'test', and 'val' where there is one, which the protocol does not use) it offers
    'few', the few-shot subset of train; 'fewval', the fifth of it that validates while searching; and 'fewtrain', the
    rest.

    Images are read from the downloaded zip files, or from the folder of the same name where these were unpacked.

    Args:
        task: Key of the task.
        split: One of the lists above.
        shots: Images per class, -1 for all.
        shot_seed: Seed of the subset (published: 0, 1, 2).
        **kwargs: See :class:`SuiteDataset`.

    Raises:
        ValueError: If ``shots`` leaves nothing to train on while searching.
    """

    SUITE = ELEVATER

    def __init__(self, task: str, split: str, shots: int = -1, shot_seed: int = 0, **kwargs: Any) -> None:
        if shots != -1 and shots < 1 or (shots == 1 and split in ('fewtrain', 'fewval')):
            raise ValueError(
                f'shots={shots}: give -1 for all images, or at least 2 images per class (one trains, one validates)')
        self.shots = shots
        self.shot_seed = shot_seed
        self._where: Dict[str, str] = {}
        super().__init__(task, split, **kwargs)

    def splits(self) -> Tuple[str, ...]:
        """The index files and the protocol's subsets."""
        return (*super().splits(), 'few', 'fewtrain', 'fewval')

    def read_split(self, split: str) -> Entries:
        """Entries of one list; see :class:`SuiteDataset`."""
        if not split.startswith('few'):
            return self._read_index(self.list_path(split))
        entries = self._read_index(self.list_path('train'))
        shots = self.shots
        if shots == -1 and split != 'few':
            shots = SEARCH_SHOTS.get(self.task.name, -1)
        chosen = few_shot_positions([labels for _, labels in entries], self.task.num_classes, shots, self.shot_seed)
        subset = [entries[p] for p in chosen]
        if split == 'few':
            return subset
        held_out = set(validation_positions([labels for _, labels in subset], self.task.num_classes))
        return [entry for p, entry in enumerate(subset) if (p in held_out) == (split == 'fewval')]

    def locate(self, name: str) -> str:
        """``archive.zip@member`` inside the task's folder, or the unpacked file."""
        archive, member = split_member(name)
        if not member:
            return super().locate(name)
        if archive not in self._where:  # one look per archive, not one per image
            path = os.path.join(self.img_prefix, archive)
            unpacked = path[:-len('.zip')]
            self._where[archive] = f'{path}@' if os.path.isfile(
                path) or not os.path.isdir(unpacked) else unpacked + os.sep
        return self._where[archive] + member

    def _class_names(self, folder: str) -> Tuple[str, ...]:
        """From the class file, or from the categories of a COCO index."""
        index = os.path.join(folder, self.task.splits['test'].files[0])
        if self.task.classes_file or not index.endswith('.json') or not os.path.isfile(index):
            return super()._class_names(folder)
        return tuple(read_coco(index)[1])

    def _read_index(self, path: str) -> Entries:
        if path.endswith('.txt'):
            return read_text(path, need_label=not self.task.multi_label)
        return read_coco(path)[0]
