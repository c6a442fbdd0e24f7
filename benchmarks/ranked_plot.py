# SPDX-License-Identifier: Apache-2.0
"""The picture of the README: every measured method in one row, best first, coloured by family."""

import statistics
from typing import Any, BinaryIO, Sequence

from mmpetl.sweeps.families import ORDER
from mmpetl.sweeps.report import Row
from mmpetl.sweeps.report_plots import COLOURS


def order(rows: Sequence[Row], task: str) -> list[Row]:
    """The rows with a complete mean on a data set, best first."""
    return sorted((r for r in rows if task in r.cells and r.cells[task].mean is not None),
                  key=lambda row: -row.cells[task].mean)


def short(number: int) -> str:
    """``'221 k'``, ``'21.5 M'``; 'head only' for none."""
    if not number:
        return 'head only'
    return f'{number / 1e6:.1f} M' if number >= 1e6 else f'{number / 1e3:.0f} k'


def plot_ranked(rows: Sequence[Row], task: str, title: str, file: BinaryIO, note: str = '',
                hollow: Sequence[str] = ()) -> Any:
    """Draw mean and single runs of every method, with the trained parameters beside them.

    Args:
        rows: Rows of a report.
        task: Data set.
        title: Above the picture.
        file: Receives a PNG.
        note: Kept in the file as its description.
        hollow: Names of the rows whose rate was not searched: their diamonds are hollow.

    Returns:
        The figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    found = order(rows, task)
    figure = Figure(figsize=(8.2, 1.5 + .2 * len(found)), layout='constrained', dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, row in enumerate(found):
        cell, colour = row.cells[task], COLOURS[ORDER.index(row.family)]
        axes.plot(cell.scores, [place] * len(cell.scores), 'o', color=colour, markersize=4, alpha=.45, zorder=2)
        axes.plot([min(cell.scores), max(cell.scores)], [place, place], color=colour, linewidth=1.2, alpha=.6, zorder=1)
        axes.plot(cell.mean, place, 'D', color=colour, markersize=6, zorder=3, markeredgewidth=1.2,
                  markerfacecolor='white' if row.name in hollow else colour)
        axes.annotate(f'{statistics.fmean(cell.scores):.1f} %', (1, place), xytext=(44, 0), va='center', ha='right',
                      xycoords=('axes fraction', 'data'), textcoords='offset points', fontsize=9)
        axes.annotate(short(cell.params - (cell.head_params or 0)), (1, place), xytext=(100, 0), va='center',
                      ha='right', xycoords=('axes fraction', 'data'), textcoords='offset points', fontsize=9,
                      color='.35')
    axes.set_yticks(range(len(found)), [row.name for row in found], fontsize=9)
    axes.set_ylim(len(found) - .4, -.6)
    for text, right in (('accuracy', 44), ('trained', 100)):
        axes.annotate(text, (1, -.75), xytext=(right, 0), ha='right', va='bottom', textcoords='offset points',
                      xycoords=('axes fraction', 'data'), fontsize=8, color='.35')
    axes.set_xlabel('test accuracy, %: mean (diamond) and single seeds (dots)', fontsize=9)
    axes.tick_params(labelsize=9, length=0)
    axes.grid(axis='x', alpha=.3)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    families = [name for name in ORDER if any(row.family == name for row in found)]
    handles = [Line2D([], [], color=COLOURS[ORDER.index(name)], marker='D', linestyle='', label=name)
               for name in families]
    if hollow:
        handles.append(Line2D([], [], color='.35', marker='D', linestyle='', markerfacecolor='white',
                              label='hollow: one rate, not searched'))
    figure.legend(handles=handles, loc='outside lower center', ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, format='png', metadata={'Description': note})
    return figure
