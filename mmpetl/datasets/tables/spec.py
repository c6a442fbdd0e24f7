# SPDX-License-Identifier: Apache-2.0
"""What one benchmark task is: classes, splits, files, metric. Plain data; imports nothing but the standard library."""

import os
from dataclasses import dataclass, field
from typing import Dict, Mapping, Optional, Tuple

#: Pixel statistics in RGB, 0..255, of the two families of pretrained models that the papers use.
IMAGENET_NORM = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
CLIP_NORM = dict(mean=(122.7709383, 116.7460125, 104.09373615), std=(68.5005327, 66.6321579, 70.32316305))
#: Of checkpoints trained on inputs in -1..1 (the original in21k ViT; VPT and its successors use IMAGENET_NORM for them
#: all the same).
HALF_NORM = dict(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))


@dataclass(frozen=True)
class Split:
    """One list of images.

    Attributes:
        files: List files that may hold it, tried in this order, relative to the task's folder.
        count: Published number of images; None where none is published.
    """
    files: Tuple[str, ...]
    count: Optional[int] = None


@dataclass(frozen=True)
class Task:
    """One data set of a benchmark suite.

    Attributes:
        suite: 'vtab', 'fgvc' or 'elevater'.
        name: Key of the task; also its folder under the suite's root unless ``folder`` says otherwise.
        num_classes: Number of classes C.
        splits: Lists by name.
        group: Group over which the suite is averaged; empty where it has none.
        metric: 'accuracy', 'mean_per_class', 'roc_auc' or 'map11'.
        resize: 'squash' (to a square, aspect ignored) or 'crop' (short edge, then centre crop).
        multi_label: Whether an image may have several labels.
        folder: Folder under the suite's root.
        aliases: Other names that the folder may have, such as that of the official archive.
        images: Folder of the images inside the task's folder.
        classes_file: File with one class name a line, relative to the task's folder; None where the suite has none.
        source: Where raw records come from, for those who make the lists themselves.
        slices: Raw part of each list, for example ``{'train800': 'train[:800]'}``.
        label_rule: Name of the rule in :mod:`mmpetl.datasets.label_rules` that turns a raw record into a label.
        prompts: Number of published text prompts per class (ELEVATER).
    """
    suite: str
    name: str
    num_classes: int
    splits: Mapping[str, Split]
    group: str = ''
    metric: str = 'accuracy'
    resize: str = 'squash'
    multi_label: bool = False
    folder: str = ''
    images: str = ''
    classes_file: Optional[str] = None
    source: str = ''
    slices: Mapping[str, str] = field(default_factory=dict)
    label_rule: str = 'label'
    prompts: int = 0
    aliases: Tuple[str, ...] = ()

    @property
    def directory(self) -> str:
        """Folder of the task under the suite's root."""
        return self.folder or self.name

    def locate(self, root: str) -> str:
        """Path of the task's folder: the first of its names that exists under ``root``, else the usual one."""
        names = (self.directory, *self.aliases)
        return os.path.join(root, next((n for n in names if os.path.isdir(os.path.join(root, n))), names[0]))


@dataclass(frozen=True)
class Suite:
    """A benchmark: its tasks and what they share.

    Attributes:
        name: Key of the suite.
        title: Name in tables.
        tasks: Tasks by name, in the order in which papers print them.
        form: Published suite whose files and protocol it has; its own name for the published ones.
        dataset: Registered dataset class.
        norm: Pixel mean and standard deviation (RGB, 0..255) of the published recipes.
        root: Default folder of the data.
        phases: Which lists train and evaluate in each phase of the protocol: ``{phase: (train, evaluated)}``.
        groups: Names of the groups in order.
        hint: How to obtain the data, one sentence.
    """
    name: str
    title: str
    tasks: Dict[str, Task]
    form: str
    dataset: str
    norm: Mapping[str, Tuple[float, ...]]
    root: str
    phases: Mapping[str, Tuple[str, str]]
    groups: Tuple[str, ...] = ()
    hint: str = ''
