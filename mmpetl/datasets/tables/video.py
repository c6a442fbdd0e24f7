# SPDX-License-Identifier: Apache-2.0
"""The action data sets of V-PETL and APT: classes and sizes of the published splits. Plain data."""

from dataclasses import dataclass
from typing import Dict, Mapping, Tuple


@dataclass(frozen=True)
class VideoSet:
    """One action data set.

    Attributes:
        name: Key.
        title: Published name.
        num_classes: Number of classes C.
        splits: Videos for (training, testing) of every split; a data set with one split has the key ''. 0 where copies
            differ, because videos have been withdrawn since.
        videos: Names that the folder of videos has in the official archives.
        lists: Names that the folder of official lists has.
        source: Where the archives come from.
    """
    name: str
    title: str
    num_classes: int
    splits: Mapping[str, Tuple[int, int]]
    videos: Tuple[str, ...]
    lists: Tuple[str, ...]
    source: str


_ALL = (
    VideoSet(
        'hmdb51', 'HMDB51', 51, {f'split{i}': (3570, 1530)
                                 for i in (1, 2, 3)}, ('videos', 'hmdb51_org'),
        ('annotations', 'testTrainMulti_7030_splits'),
        'hmdb51_org.rar (one .rar per class inside) and test_train_splits.rar from the Serre lab, Brown University'),
    VideoSet('ucf101', 'UCF101', 101, {
        'split1': (9537, 3783),
        'split2': (9586, 3734),
        'split3': (9624, 3696)
    }, ('videos', 'UCF-101'), ('annotations', 'ucfTrainTestlist'),
             'UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip from CRCV, University of Central Florida'),
    VideoSet('ssv2', 'Something-Something V2', 174, {'': (168913, 24777)}, ('videos', '20bn-something-something-v2'),
             ('annotations', 'labels', '.'),
             '20bn-something-something-v2-?? (one tar of .webm files in parts) and the label files from Qualcomm'),
    VideoSet('k400', 'Kinetics-400', 400, {'': (0, 0)}, ('videos', '.'), ('annotations', '.'),
             'the archives of the CVDF mirror and its annotations/train.csv and val.csv'),
)

VIDEO_SETS: Dict[str, VideoSet] = {s.name: s for s in _ALL}
