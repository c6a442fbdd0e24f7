# SPDX-License-Identifier: Apache-2.0
"""The report of sweeps as Markdown, CSV, LaTeX and as a plot of accuracy over cost."""

import csv
import io
import os
from functools import partial
from pathlib import Path
from typing import Any, List, Optional, Sequence, TextIO

from ..datasets.tables import get_suite
from ..names import csv_cell, latex_text, markdown_text, plain_name
from ..weights.io import atomic_write
from .plan import write_text
from .report import Row, table, tasks_of, time_of
from .report_pages import sweep_page
from .report_plots import plot

NOTE = (
    'Scores in per cent, last epoch, mean and sample standard deviation over the seeds. [k/n]: k of n are there; '
    'means are taken over '
    'complete tasks only. PE counts the head among the trainable parameters, PPT does not.')


def markdown(rows: Sequence[Row]) -> str:
    """One suite's table in Markdown, with everything that failed below it."""
    head, *body = table(rows)
    lines = [[markdown_text(name) for name in head], *([markdown_text(label), *cells] for label, *cells in body)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [
        '| ' + ' | '.join(text.ljust(w) if i == 0 else text.rjust(w)
                          for i, (text, w) in enumerate(zip(line, widths))) + ' |' for line in lines
    ]
    rule = '| ' + ' | '.join('-' * w if i == 0 else '-' * (w - 1) + ':' for i, w in enumerate(widths)) + ' |'
    failed = [f'- {markdown_text(row.name)}, {markdown_text(error)}'
              for row in rows for cell in row.cells.values() for error in cell.errors]
    return '\n'.join([padded[0], rule, *padded[1:], '', NOTE, *(['', 'Failed:', *failed] if failed else []), ''])


def latex(rows: Sequence[Row]) -> str:
    """One suite's table in LaTeX (booktabs)."""
    lines = [[latex_text(text).replace('±', '$\\pm$') for text in line] for line in table(rows)]
    body = [' & '.join(line) + r' \\' for line in lines]
    tasks = len(tasks_of(rows))
    return '\n'.join([
        r'% \usepackage{booktabs}', r'\begin{tabular}{l' + 'r' * len(rows) + '}', r'\toprule', body[0], r'\midrule',
        *body[1:tasks + 1], r'\midrule', *body[tasks + 1:], r'\bottomrule', r'\end{tabular}', '% ' + NOTE, ''
    ])


class _SafeWriter:
    """Writes lines of CSV in which no text is a formula."""

    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(file, lineterminator='\n')

    def writerow(self, row: Sequence[Any]) -> None:
        self._writer.writerow([csv_cell(value) for value in row])


def csv_text(rows: Sequence[Row]) -> str:
    """One line per method and task, then one per mean; missing numbers are empty."""
    suite = get_suite(rows[0].suite)
    short = Path(suite.name).stem  # of a suite of one's own, the file's name without its folder
    file = io.StringIO()
    writer = _SafeWriter(file)
    writer.writerow([
        'suite', 'method', 'task', 'group', 'score', 'spread', 'runs', 'runs_wanted', 'best_epoch_selected_on_test',
        'trainable', 'head', 'peak_bytes', 'errors', 'chosen', 'seconds'
    ])
    time_label, seconds = time_of(rows)
    for row, time in zip(rows, seconds):
        for task in suite.tasks.values():
            cell = row.cells.get(task.name)
            if cell is None:
                writer.writerow(
                    [short, row.name, task.name, task.group, '', '', 0, 0, '', '', '', '', 'not in the sweep', '', ''])
                continue
            best = sum(cell.best_scores) / len(cell.best_scores) if row.tested_often and cell.mean is not None else None
            writer.writerow([
                short, row.name, task.name, task.group,
                _plain(cell.mean),
                _plain(cell.spread),
                len(cell.scores), cell.wanted,
                _plain(best),
                _plain(cell.params),
                _plain(cell.head_params),
                _plain(cell.peak_bytes), '; '.join(cell.errors), cell.chosen,
                round(cell.seconds, 1)
            ])
        for label, mean in row.means().items():
            writer.writerow([short, row.name, label, 'mean', _plain(mean.value), '', mean.have, mean.need, *[''] * 7])
        for label, value in row.efficiency(tasks_of(rows)).items():
            writer.writerow([short, row.name, label, 'efficiency', _plain(value), *[''] * 10])
        writer.writerow([short, row.name, time_label, 'efficiency', _plain(time), *[''] * 10])
        if row.computed_bytes is not None:
            writer.writerow(
                [short, row.name, 'training memory, bytes (computed)', 'efficiency', row.computed_bytes, *[''] * 10])
    return file.getvalue()


def _plain(value: Optional[float]) -> Any:
    return '' if value is None else value


def write_all(rows: Sequence[Row], folder: str) -> List[str]:
    """Write ``<suite>.md``, ``.csv``, ``.tex``, ``.png`` and ``.html`` of every suite; returns the paths."""
    paths = []
    for suite in dict.fromkeys(row.suite for row in rows):
        mine = [row for row in rows if row.suite == suite]
        for suffix, write in (('md', partial(write_text, markdown(mine))), ('csv', partial(write_text, csv_text(mine))),
                              ('tex', partial(write_text, latex(mine))), ('png', partial(plot, mine)),
                              ('html', partial(write_text, sweep_page(mine)))):
            path = os.path.join(folder, f'{plain_name(Path(suite).stem, "suite")}.{suffix}')
            atomic_write(path, write)
            paths.append(path)
    return paths
