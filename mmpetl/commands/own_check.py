# SPDX-License-Identifier: Apache-2.0
"""``mmpetl data check CONFIG|FOLDER|LIST``: the data of a config, or of one's own."""

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..datasets.collect import collect
from ..datasets.contact_sheet import contact_sheet, write_sheet
from ..datasets.survey import survey_pictures, survey_videos
from ..recipes import find_config
from ..training.data_report import DataReport, check_collection, check_config
from ..weights.io import write_json
from .progress import bar

#: Suffixes of lists.
LISTS = ('.csv', '.txt', '.tsv')


def is_own(name: str) -> bool:
    """Whether a name is a folder, a list or a config, and not that of a suite."""
    if os.path.isdir(os.path.expanduser(name)) or name.endswith(('.py', *LISTS)):
        return True
    if name.endswith('.json'):  # the file of a suite
        return False
    try:
        find_config(name)
    except FileNotFoundError:
        return False
    return True


def _print(report: DataReport) -> None:
    from rich.console import Console
    from rich.table import Table
    total = sum(sum(counts.values()) for counts in report.counts.values()) + report.unlabelled
    print(f'{report.source}: {total} {report.kind}s{report.extent}')
    table = Table()
    table.add_column('class')
    for part in report.counts:
        table.add_column(part, justify='right')
    labels = sorted({*range(len(report.classes)), *(c for counts in report.counts.values() for c in counts)})
    for label in labels[:50]:
        table.add_row(report.name_of(label), *(str(counts.get(label, 0)) for counts in report.counts.values()))
    if len(labels) > 50:
        table.add_row(f'and {len(labels) - 50} more', *[''] * len(report.counts))
    table.add_row('all', *(str(sum(counts.values())) for counts in report.counts.values()))
    if labels and report.unlabelled < total:
        Console().print(table)
    for problem in report.problems:
        print(f'problem: {problem}')
    print(f'{len(report.problems)} problems' if report.problems else 'no problem found')


def _check(args: argparse.Namespace) -> Any:
    with bar('files') as tick:
        name = os.path.expanduser(args.suite)
        if not os.path.isdir(name) and not name.endswith(LISTS):
            return check_config(name, not args.no_decode, args.jobs, args.samples, tick)
        found = collect(name, root=args.root or '')
        paths = [found.full(item) for item in found.items]
        survey = survey_videos(paths, 'exists' if args.no_decode else 'open', min(args.jobs, 2), tick) if (
            found.kind == 'video') else survey_pictures(paths, jobs=args.jobs, tick=tick)
        return check_collection(found, survey, args.samples)


def run(args: argparse.Namespace) -> int:
    """Check and print; 1 if anything is wrong.

    Raises:
        ValueError: If an option does not fit.
    """
    if args.task:
        raise ValueError(f'--task {" ".join(args.task)}: {args.suite} is data of your own and has no tasks: leave it '
                         'out')
    if args.sheet and not args.sheet.lower().endswith('.png'):
        raise ValueError(f'--sheet {args.sheet}: name it *.png')
    report, samples = _check(args)
    _print(report)
    if samples:
        path = args.sheet or os.path.join('work_dirs', 'data_check', f'{Path(args.suite).stem or "data"}.png')
        write_sheet(path, contact_sheet(samples))
        print(f'{len(samples)} samples as the model sees them: {path}' if report.kind == 'video' or not os.path.isdir(
            os.path.expanduser(args.suite)) else f'{len(samples)} samples: {path}')
    if args.json:
        write_json(args.json, asdict(report))
    return 1 if report.problems else 0
