# SPDX-License-Identifier: Apache-2.0
"""``mmpetl data check hmdb51|ucf101|ssv2``: are the lists as published, and does every video decode?"""

import argparse
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Dict, List, Union

from ..datasets.how_to_get import and_get
from ..datasets.tables.video import VIDEO_SETS
from ..datasets.video_lists import Entry, read_video_list
from ..datasets.video_prepare import check_counts
from ..datasets.video_probe import Probe, check_videos
from ..sites import nearest
from ..weights.io import write_json


@dataclass
class VideoReport:
    """What a check found.

    Attributes:
        name: Key of the data set.
        problems: What differs from the published lists, one line each.
        unreadable: The videos that cannot be read, with the reason.
        videos: Number of videos that were tried.
        frames: Their frames, where all were decoded.
        shortest: Fewest frames of a readable video; 0 where none was opened.
    """
    name: str
    problems: List[str] = field(default_factory=list)
    unreadable: List[Probe] = field(default_factory=list)
    videos: int = 0
    frames: int = 0
    shortest: int = 0

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and not self.unreadable

    def lines(self) -> List[str]:
        """The report for people."""
        found = [f'problem: {line}'
                 for line in self.problems] + [f'unreadable: {p.path}: {p.reason}' for p in self.unreadable]
        shortest = f', the shortest has {self.shortest} frames' if self.shortest else ''
        verdict = 'as published'
        if not self.passed:
            verdict = f'{len(self.problems)} problems, {len(self.unreadable)} unreadable videos'
        return [*found, f'{VIDEO_SETS[self.name].title}: {self.videos} videos tried{shortest}: {verdict}']


def read_lists(root: Path, name: str) -> Dict[str, Dict[str, List[Entry]]]:
    """The lists that ``tools/prepare_<name>.py`` writes: split -> 'train' or 'test' -> lines.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If a line is wrong.
    """
    info = VIDEO_SETS[name]
    for split in info.splits:
        for part in ('train', 'test'):
            if not (root / split / f'{part}.csv').is_file():
                raise FileNotFoundError(
                    f'{root / split / part}.csv does not exist: run python tools/prepare_{name}.py {root}'
                    + and_get('', name, str(root)))
    return {
        split: {
            part: read_video_list(str(root / split / f'{part}.csv'), info.num_classes)
            for part in ('train', 'test')
        }
        for split in info.splits
    }


def check_video_dataset(name: str,
                        root: Union[str, os.PathLike, None] = None,
                        level: str = 'decode',
                        decoder: str = 'auto',
                        timeout: float = 30.,
                        workers: int = 2) -> VideoReport:
    """Compare the lists with the published ones and try every video.

    Args:
        name: 'hmdb51', 'ucf101' or 'ssv2'.
        root: Folder of the lists; default ``data/<name>``.
        level: 'exists', 'open' or 'decode', see :func:`mmpetl.datasets.video_probe.probe`.
        decoder: 'auto', 'decord', 'pyav' or 'opencv'.
        timeout: Seconds that one video may take.
        workers: Processes that decode.

    Raises:
        ValueError: If the data set is unknown or a line of a list is wrong.
        FileNotFoundError: If a list is not found.
    """
    if name not in VIDEO_SETS:
        raise ValueError(f'unknown video data set {name!r}' + nearest(name, VIDEO_SETS))
    info = VIDEO_SETS[name]
    folder = Path(root or Path('data') / name).expanduser()
    lists = read_lists(folder, name)
    rows = {
        split: {
            part: [(e.path, e.label) for e in entries]
            for part, entries in parts.items()
        }
        for split, parts in lists.items()
    }
    classes = sorted({label for parts in rows.values() for part in parts.values() for _, label in part})
    names = sorted({path for parts in rows.values() for part in parts.values() for path, _ in part})
    report = VideoReport(name, check_counts(info, rows, [str(c) for c in classes]), videos=len(names))
    found = check_videos([str(folder / n) for n in names], level, decoder, timeout, workers, title=info.title)
    report.unreadable = [p for p in found if p.reason]
    report.frames = sum(p.frames for p in found)
    report.shortest = min((p.frames for p in found if p.frames and not p.reason), default=0)
    return report


def run(args: argparse.Namespace) -> int:
    """Check and print; 0 if everything is as published, 1 otherwise."""
    report = check_video_dataset(args.suite, args.root, 'exists' if args.no_decode else 'decode', args.decoder,
                                 args.timeout, args.jobs)
    print('\n'.join(report.lines()))
    if args.json:
        write_json(args.json, dict(asdict(report), passed=report.passed))
    return 0 if report.passed else 1
