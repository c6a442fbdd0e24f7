"""Images named by a list file ``path label``, with errors that name the file and the line."""

import os.path as osp
import sys
from typing import Any, List, Sequence, Union

from mmpretrain.datasets import CustomDataset

from ..registry import DATASETS
from .lists import check_labels, read_text


@DATASETS.register_module()
class ListDataset(CustomDataset):
    """mmpretrain's ``CustomDataset`` of a list file, one ``path label`` a line, that checks what it is given.

    Upstream trains on any label: one outside the classes becomes an index error of the loss or, on a GPU, an assert
    that ends the process. With :class:`~mmpetl.datasets.loading.LoadImage` an unreadable image is named as well.

    Args:
        ann_file: List file, relative to ``data_root``.
        data_root: Folder of the data set; ``~`` is expanded.
        data_prefix: Folder of the images, relative to ``data_root``.
        classes: Class names, or a file with one name a line, relative to ``data_root``. None: every label >= 0 is
            taken.
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``.

    Raises:
        FileNotFoundError: If the folder, the list, the class file or the first image of the list is missing.
        ValueError: If a line cannot be read or a label lies outside the classes.
    """

    def __init__(self, ann_file: str, data_root: str = '', data_prefix: Union[str, dict] = '',
                 classes: Union[str, Sequence[str], None] = None, **kwargs: Any) -> None:
        data_root = osp.expanduser(data_root)
        if data_root and not osp.isdir(data_root):
            raise FileNotFoundError(f'data folder {data_root} does not exist: set data_root, or fetch the data with '
                                    'tools/fetch_data.py (its option --list shows what there is)')
        if isinstance(classes, str):
            classes = osp.join(data_root, osp.expanduser(classes))
            if not osp.isfile(classes):
                raise FileNotFoundError(f'class file {classes} does not exist')
        super().__init__(data_root=data_root, data_prefix=data_prefix, ann_file=ann_file, classes=classes, **kwargs)

    def load_data_list(self) -> List[dict]:
        """``dict(img_path, gt_label)`` for each line of the list file; empty lines are skipped."""
        if not osp.isfile(self.ann_file):
            raise FileNotFoundError(f'list file {self.ann_file} does not exist: set ann_file')
        entries = read_text(self.ann_file)
        if not entries:
            raise ValueError(f'{self.ann_file} lists no image')
        check_labels(entries, len(self.CLASSES) if self.CLASSES is not None else sys.maxsize, self.ann_file)
        # a wrong folder is the common mistake; single images are checked as they are read
        first = osp.join(self.img_prefix, entries[0][0])
        if not osp.isfile(first):
            raise FileNotFoundError(
                f'{self.ann_file} lists {first}, which does not exist: set data_root or data_prefix')
        return [dict(img_path=osp.join(self.img_prefix, name), gt_label=labels[0]) for name, labels in entries]
