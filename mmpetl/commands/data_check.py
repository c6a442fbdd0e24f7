# SPDX-License-Identifier: Apache-2.0
"""``mmpetl data check SUITE``: counts, missing and undecodable files, images that are in training and test, checksums
of the lists."""

import argparse
import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from ..datasets.how_to_get import and_get
from ..datasets.suite_dataset import how_to_mend
from ..datasets.tables import SUITES, Suite, Task, get_suite, get_task
from ..datasets.tables.video import VIDEO_SETS
from ..names import printable
from ..weights.io import write_json
from ..weights.reading import sha256_of
from . import own_check, video_check


@dataclass
class SplitReport:
    """What one list holds.

    Attributes:
        file: The list file, '' where it is missing.
        sha256: Digest of the list file.
        count: Images in the list.
        expected: Published number of images, None where none is published.
        classes: Classes that occur.
        smallest: Images of the rarest class that occurs.
        largest: Images of the commonest class.
    """
    file: str = ''
    sha256: str = ''
    count: int = 0
    expected: Optional[int] = None
    classes: int = 0
    smallest: int = 0
    largest: int = 0


@dataclass
class TaskReport:
    """What was found of one task.

    Attributes:
        task: Key of the task.
        num_classes: Classes that the task has.
        splits: Report of each list.
        missing: Listed images that are not there.
        broken: Images that cannot be decoded, with the reason.
        duplicates: Pairs (training image, test image) of equal bytes.
        problems: Everything that is wrong, one sentence each, with what to do.
    """
    task: str
    num_classes: int
    splits: Dict[str, SplitReport] = field(default_factory=dict)
    missing: List[str] = field(default_factory=list)
    broken: List[str] = field(default_factory=list)
    duplicates: List[Tuple[str, str]] = field(default_factory=list)
    problems: List[str] = field(default_factory=list)


def _digest(path: str) -> str:
    return sha256_of(path)


def _look(path: str, decode: bool) -> Tuple[str, str]:
    """(digest, what is wrong) of one image."""
    from ..datasets.loading import LoadImage, read_bytes
    try:
        data = read_bytes(path)
    except OSError:
        return '', 'missing'
    except ValueError as error:
        return '', str(error)
    if decode:
        try:
            LoadImage().decode(data)  # what a training reads, so what it cannot read is found
        except ValueError as error:
            return '', str(error)
    return hashlib.blake2b(data, digest_size=16).hexdigest(), ''


def _read_lists(task: Task, suite: Suite, root: str, report: TaskReport) -> Dict[str, List[Dict[str, Any]]]:
    """Load every list of the task; what cannot be read goes into the problems."""
    from ..registry import DATASETS
    lists = {}
    for split, spec in task.splits.items():
        entry = report.splits[split] = SplitReport(expected=spec.count)
        try:
            own = suite.name if suite.name != suite.form else None
            dataset = DATASETS.build(dict(type=suite.dataset, task=task.name, split=split, data_root=root, suite=own))
            entry.file = dataset.list_path(split, optional=True)
        except FileNotFoundError:
            if _needed(suite, split):
                report.problems.append(f'the list {os.path.join(task.directory, spec.files[0])} is missing: '
                                       + how_to_mend(suite, task.name, root))
            continue
        except ValueError as error:
            report.problems.append(str(error))
            continue
        rows = lists[split] = [dataset.get_data_info(i) for i in range(len(dataset))]
        counts = Counter(c for i in range(len(dataset)) for c in dataset.get_cat_ids(i))
        entry.sha256 = _digest(entry.file) if entry.file else ''
        entry.count, entry.classes = len(rows), len(counts)
        entry.smallest, entry.largest = min(counts.values(), default=0), max(counts.values(), default=0)
        if entry.expected is not None and entry.count != entry.expected:
            report.problems.append(
                f'{split} has {entry.count} images, published are {entry.expected}: is it the list of this release?')
        if entry.classes < task.num_classes and _needed(suite, split):
            # Not an error: VTAB's 1,000 images lack rare classes of some tasks.
            entry.smallest = 0
    return lists


def _needed(suite: Suite, split: str) -> bool:
    """Whether the protocol uses this list; ELEVATER's validation lists are never used."""
    return not (suite.form == 'elevater' and split == 'val')


def check_task(task: Task,
               root: str,
               decode: bool = True,
               jobs: int = 4,
               tick: Optional[Callable[[int, int], None]] = None) -> TaskReport:
    """Look at everything of one task.

    Args:
        task: The task.
        root: Folder of the suite's data.
        decode: Open every image; otherwise only look whether it is there and compare bytes.
        jobs: Threads that read images.
        tick: Called with (images done, images in all).

    Returns:
        The report; no problem means that the task can be used.
    """
    suite = get_suite(task.suite)
    report = TaskReport(task.name, task.num_classes)
    if not os.path.isdir(task.locate(root)):
        report.problems.append(f'the folder {os.path.join(root, task.directory)} does not exist: '
                               + how_to_mend(suite, task.name, root))
        return report
    lists = _read_lists(task, suite, root, report)
    paths = list(dict.fromkeys(row['img_path'] for rows in lists.values() for row in rows))
    digests: Dict[str, str] = {}
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        for done, (path, (digest, wrong)) in enumerate(zip(paths, pool.map(lambda p: _look(p, decode), paths)), 1):
            digests[path] = digest
            if wrong == 'missing':
                report.missing.append(path)
            elif wrong:
                report.broken.append(f'{path} ({wrong})')
            if tick is not None:
                tick(done, len(paths))
    _compare(lists, digests, report)
    again = and_get('', task.suite if task.suite == 'vtab' else f'{task.suite}/{task.name}', root)
    for kind, found, hint in (('are missing', report.missing, f'unpack the images again{again}'),
                              ('cannot be decoded', report.broken, f'fetch them again{again}')):
        if found:
            report.problems.append(f'{len(found)} of {len(paths)} images {kind}, first {found[0]}: {hint}')
    return report


def _compare(lists: Dict[str, List[Dict[str, Any]]], digests: Dict[str, str], report: TaskReport) -> None:
    """Pairs of equal bytes between training and test lists; train and validation parts count as training."""
    train: Dict[str, str] = {}
    for split, rows in lists.items():
        if split != 'test':
            train.update({digests[row['img_path']]: row['img_path'] for row in rows if digests[row['img_path']]})
    report.duplicates = [(train[digests[row['img_path']]], row['img_path']) for row in lists.get('test', ())
                         if digests[row['img_path']] in train]
    if report.duplicates:
        report.problems.append(f'{len(report.duplicates)} test images are byte for byte in the training lists, first '
                               f'{report.duplicates[0][1]}: scores on them say nothing')


def check_suite(suite: str, root: Optional[str] = None, tasks: Sequence[str] = (), decode: bool = True, jobs: int = 4,
                progress: bool = False) -> List[TaskReport]:
    """Check the tasks of a suite.

    Args:
        suite: Name of the suite.
        root: Folder of its data; default the suite's.
        tasks: Keys of the tasks; empty for all.
        decode: See :func:`check_task`.
        jobs: See :func:`check_task`.
        progress: Show a bar.

    Raises:
        ValueError: If suite or task is unknown.
        FileNotFoundError: If the root is missing.
    """
    from rich.markup import escape
    from rich.progress import Progress
    spec = get_suite(suite)
    root = os.path.expanduser(root or spec.root)
    chosen = [get_task(spec, name) for name in tasks] or list(spec.tasks.values())
    if not os.path.isdir(root):
        raise FileNotFoundError(f'the folder {root} does not exist: set --root; {how_to_mend(spec, "", root)}')
    reports = []
    with Progress(disable=not progress, transient=True) as bar:
        whole = bar.add_task(escape(printable(spec.title)), total=len(chosen))
        for task in chosen:
            part = bar.add_task(escape(printable(task.name)), total=None)
            reports.append(check_task(task, root, decode, jobs, partial(_show, bar, part)))
            bar.remove_task(part)
            bar.advance(whole)
    return reports


def _show(bar: Any, part: Any, done: int, total: int) -> None:
    bar.update(part, completed=done, total=total)


def _table(suite: Suite, reports: Iterable[TaskReport]) -> Any:
    from rich.markup import escape
    from rich.table import Table
    title = escape(printable(suite.title))
    table = Table(title=f'{title}: lists as found (published number in brackets where it differs)')
    for column, justify in (('task', 'left'), ('list', 'left'), ('images', 'right'), ('classes', 'right'),
                            ('per class', 'right'), ('sha256', 'left')):
        table.add_column(column, justify=justify)
    for report in reports:
        for name, split in report.splits.items():
            if not split.count:
                table.add_row(escape(printable(report.task)), name, '-', '-', '-', 'no list')
                continue
            count = f'{split.count:,}' + (f' ({split.expected:,})' if split.expected not in (None, split.count) else '')
            table.add_row(escape(printable(report.task)), name, count, f'{split.classes}/{report.num_classes}',
                          f'{split.smallest}-{split.largest}', split.sha256[:12] or 'cut out')
        if not report.splits:
            table.add_row(escape(printable(report.task)), '-', '-', '-', '-', 'no folder')
    return table


def run(args: argparse.Namespace) -> int:
    """``mmpetl data check``; status 1 if anything is wrong."""
    if args.suite in VIDEO_SETS:
        return video_check.run(args)
    if args.suite not in SUITES and own_check.is_own(args.suite):
        return own_check.run(args)
    from rich.console import Console
    from rich.text import Text
    suite = get_suite(args.suite)
    reports = check_suite(args.suite, args.root, args.task, not args.no_decode, args.jobs, progress=True)
    console = Console()
    console.print(_table(suite, reports))
    for report in reports:
        for problem in report.problems:
            console.print(Text.assemble((printable(report.task), 'red'), f': {printable(problem)}'), soft_wrap=True)
    bad = sum(bool(r.problems) for r in reports)
    readable = '' if bad or args.no_decode else ', every image readable'
    console.print(f'{len(reports) - bad} of {len(reports)} tasks are in order{readable}')
    if args.json:
        write_json(args.json, [asdict(r) for r in reports])
    return 1 if bad else 0
