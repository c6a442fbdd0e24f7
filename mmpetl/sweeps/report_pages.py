# SPDX-License-Identifier: Apache-2.0
"""The HTML pages of sweeps and of runs; :mod:`mmpetl.sweeps.report_html` lays them out."""

import io
import os
import shlex
import statistics
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..datasets.tables import get_suite
from ..training.work_dir import read_commands
from ..weights.reading import read_text
from .compare import interval
from .report import MISSING, Row, cell_text, mean_label, mean_names, mean_text, memory_of, tasks_of, time_of
from .report_html import Cell, Picture, Sample, Section, Table, Text, data_uri, number, render
from .report_maps import draw_maps, draw_prompts, maps_of, words_of
from .report_plots import plot
from .run_facts import Curve, Outcome, config_of, is_run, logs_epochs, outcome_of, read_curves, trained_file
from .short_names import short_names

#: Most classes of which a confusion matrix is a table of text; beyond, it is a picture.
MATRIX = 40
#: Most points of a curve.
POINTS = 300


def drawn(draw: Callable[[Any], None], caption: str, kind: str = 'svg') -> Picture:
    """What ``draw(file)`` writes, as a picture of a page."""
    file = io.BytesIO()
    draw(file)
    return Picture(data_uri(file.getvalue(), 'image/svg+xml' if kind == 'svg' else f'image/{kind}'), caption)


# -- curves -----------------------------------------------------------------------------------------------------------


def draw_curves(panels: Sequence[Tuple[str, str, Dict[str, Curve]]], file: Any) -> None:
    """Curves side by side.

    Args:
        panels: (label of x, label of y, curves by name).
        file: Receives the SVG.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    figure = Figure(figsize=(4.8 * len(panels), 3.4), layout='constrained')
    FigureCanvasSVG(figure)
    for axes, (x, y, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for name, curve in curves.items():
            step = max(1, len(curve) // POINTS)
            points = curve[::step] + ([curve[-1]] if (len(curve) - 1) % step else [])
            axes.plot(*zip(*points), marker='o' if len(points) < 12 else '', markersize=3, linewidth=1.2)
            # matplotlib leaves labels that begin with '_' out of the legend
            axes.get_lines()[-1].set_label(f' {name}' if name.startswith('_') else name)
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no half iteration
        axes.set_ylabel(y, parse_math=False)  # names may hold $
        axes.grid(alpha=.25)
        if len(curves) > 1:
            for text in axes.legend(fontsize=7).get_texts():
                text.set_parse_math(False)
    figure.savefig(file, format='svg', metadata={'Date': None})  # the same bytes whenever it is drawn


def curve_pictures(folders: Dict[str, str]) -> List[Picture]:
    """Loss and validation scores of some runs in one picture; none where nothing was logged.

    Args:
        folders: Work dirs by the names of their curves.
    """
    losses: Dict[str, Curve] = {}
    scores: Dict[str, Dict[str, Curve]] = {}
    for name, folder in folders.items():
        training, testing = read_curves(folder)
        if training.get('loss'):
            losses[name] = training['loss']
        for metric, curve in testing.items():
            scores.setdefault(metric, {})[name] = curve
    panels = [('iteration', 'training loss', losses)] if losses else []
    unit = 'epoch' if all(logs_epochs(folder) for folder in folders.values() if is_run(folder)) else 'iteration'
    panels += [(unit, metric, curves) for metric, curves in sorted(scores.items())[:2]
               if any(len(curve) > 1 for curve in curves.values())]
    return [drawn(lambda file: draw_curves(panels, file), 'Training curves')] if panels else []


# -- a page of sweeps -------------------------------------------------------------------------------------------------


def _cell(cell: Any) -> Cell:
    return Cell(cell_text(cell), statistics.fmean(cell.scores) if cell and cell.scores else None)


def results_table(rows: Sequence[Row]) -> Table:
    """One line per method: its scores, the mean with a confidence interval over seeds, and what it costs."""
    tasks = tasks_of(rows)
    memory_label, memory = memory_of(rows)
    time_label, seconds = time_of(rows)
    mean = mean_label(rows)  # of a complete suite it is one of the suite's own
    labels, lines = [label for label in mean_names(rows) if label != mean], []
    short = short_names([row.name for row in rows])
    for row, kept, s in zip(rows, memory, seconds):
        runs, means = row.per_run(tasks), row.means()
        half = interval(runs) if runs else None
        lines.append([
            Cell(short[row.name]), Cell(row.family), *[_cell(row.cells.get(task)) for task in tasks],
            number(row.average('mean', tasks)), Cell(MISSING) if half is None else Cell(f'± {half:.2f}', half),
            *[Cell(mean_text(means[label]), means[label].value) for label in labels],
            number(row.average('params', tasks), ',.0f'),
            number(None if kept is None else kept / 2**30), number(s, '.0f')])
    head = ['method', 'family', *tasks, mean.split(' (')[0], '95 % interval', *labels, 'trainable', memory_label,
            time_label]
    return Table(head, lines, 'Per cent, last epoch. Cells: mean ± standard deviation over seeds. The interval is that '
                 'of the mean over seeds, by Student.')


def sweep_page(rows: Sequence[Row]) -> str:
    """The page of one suite's sweeps."""
    title = printable_title(rows)
    caption = 'Colour and mark: family. Bars: standard deviation over seeds. Line: best trade-offs.'
    sections = [
        Section('Accuracy over costs', pictures=[drawn(lambda file: plot(rows, file), caption, 'png')]),
        Section('Results', tables=[results_table(rows)])
    ]
    failed = '\n'.join(f'{row.name}, {error}' for row in rows for cell in row.cells.values() for error in cell.errors)
    if failed:
        sections.append(Section('Failed', texts=[Text('What failed', failed, True)]))
    sections += [_sweep_section(row) for row in rows]
    return render(title, sections)


def printable_title(rows: Sequence[Row]) -> str:
    """What a page of sweeps is about."""
    return f'{get_suite(rows[0].suite).title}: {len(rows)} method{"s" if len(rows) > 1 else ""}'


def _sweep_section(row: Row) -> Section:
    """One sweep: its curves, what the search chose, command and config."""
    section = Section(row.name)
    chosen = '; '.join(f'{task}: {cell.chosen}' for task, cell in row.cells.items() if cell.chosen)
    section.note = f'Chosen by the search: {chosen}.' if chosen else ''
    folders = {f'{task} {run}': os.path.join(row.folder, folder, 'run') for task, cell in row.cells.items()
               for run, folder in cell.folders.items()}
    section.pictures = curve_pictures(folders) if len(folders) <= 24 else []
    commands = [f'# {name}\n{repeat(folder)}' for name, folder in folders.items() if is_run(folder)]
    section.texts = texts_of(row.folder, os.path.join(row.folder, 'config.py'),
                             'Config, without what the sweep sets: task, seed and the choices of the search')
    if commands:
        section.texts[1:1] = [Text('Commands of single runs, with all that the sweep set', '\n'.join(commands))]
    return section


def repeat(folder: str) -> str:
    """The command that trains a run again, by the config that MMEngine wrote as it began."""
    return shlex.join(['mmpetl', 'train', config_of(folder), '--work-dir', 'work_dirs/again'])


def texts_of(folder: str, config: str, title: str = 'Config') -> List[Text]:
    """Command and config of a run or sweep, as far as they are there; a run of a sweep has no command of its own."""
    commands = read_commands(folder) or ([repeat(folder)] if is_run(folder) else [])
    found = [Text('Command', '\n'.join(commands))] if commands else []
    return found + ([Text(title, read_text(config))] if os.path.isfile(config) else [])


# -- the page of a run ------------------------------------------------------------------------------------------------


def class_table(outcome: Outcome) -> Table:
    """Samples, recall and precision of every class; the class it is most often taken for."""
    matrix = outcome.confusion()
    lines = []
    for i, name in enumerate(outcome.classes):
        count, guessed = int(matrix[i].sum()), int(matrix[:, i].sum())
        wrong = matrix[i].copy()
        wrong[i] = 0
        other = int(wrong.argmax())
        lines.append([
            Cell(name), Cell(str(count), count), number(100 * matrix[i, i] / count if count else None, '.1f'),
            number(100 * matrix[i, i] / guessed if guessed else None, '.1f'),
            Cell(f'{outcome.classes[other]} ({wrong[other]})', float(wrong[other])) if wrong[other] else Cell(MISSING)])
    return Table(['class', 'test samples', 'accuracy, %', 'precision, %', 'most often taken for'], lines)


def confusion_section(outcome: Outcome) -> Section:
    """The confusion matrix: numbers up to :data:`MATRIX` classes, a picture beyond."""
    matrix = outcome.confusion()
    note = 'Rows: true class. Columns: predicted class. Shaded by the share of the row.'
    if len(outcome.classes) > MATRIX:
        picture = drawn(lambda file: _draw_matrix(matrix, file), 'Confusion matrix', 'png')
        return Section('Confusion matrix', note, [picture])
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    lines = [[Cell(name), *[Cell(str(n) if n else '', shade=float(s)) for n, s in zip(matrix[i], shares[i])]]
             for i, name in enumerate(outcome.classes)]
    return Section('Confusion matrix', note, tables=[Table(['', *outcome.classes], lines, kind='matrix')])


def _draw_matrix(matrix: np.ndarray, file: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6.5, 6), layout='constrained', dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = axes.imshow(matrix / np.maximum(matrix.sum(1, keepdims=True), 1), cmap='Blues', vmin=0, vmax=1)
    figure.colorbar(shown, label='share of the true class')
    axes.set_xlabel('predicted class')
    axes.set_ylabel('true class')
    figure.savefig(file, format='png')


def maps_section(outcome: Outcome, count: int, tick: Optional[Callable[[int, int], None]] = None) -> List[Section]:
    """What the model looked at in the worst samples; none where nothing is asked for.

    Args:
        outcome: The test, with its model.
        count: Samples to explain.
        tick: Called with (samples done, samples in all).
    """
    samples, found = [], []
    for done, bad in enumerate(outcome.worst[:count]):
        if tick:
            tick(done, min(count, len(outcome.worst)))
        try:
            found.append(maps_of(outcome.model, bad.inputs, bad.guess))
        except ValueError as error:
            return [Section('What the model looked at', f'No maps: {error}.')]
        samples.append(Sample(data_uri(draw_maps(bad.inputs, outcome.swap, found[-1]), 'image/jpeg'), bad.name,
                              outcome.classes[bad.label], outcome.classes[bad.guess],
                              words_of(found[-1], outcome.classes[bad.guess])))
    if not samples:
        return []
    note = ('The worst samples. Second picture: what adds to the score of the predicted class (red) and takes from it '
            '(blue), by integrated gradients.')
    note += (' Third: where the class token looks in the last block.' if found[0].attention is not None else '')
    file = io.BytesIO()
    caption = 'What each prompt adds to the score of the predicted class, mean over these samples'
    pictures = [Picture(data_uri(file.getvalue(), 'image/svg+xml'), caption)] if draw_prompts(found, file) else []
    return [Section('What the model looked at', note, pictures, samples=samples, wide=True)]


def run_page(folder: str, test: bool = True, tick: Optional[Callable[[int, int], None]] = None, maps: int = 6) -> str:
    """The page of a training run.

    Args:
        folder: Its work dir.
        test: Test its adapter on the test data, for classes, confusions and the worst samples.
        tick: Called with (done, in all), of the batches of the test and then of the maps.
        maps: Of how many of the worst samples maps are drawn of what the model looked at.
    """
    sections = [Section('', pictures=curve_pictures({'run': folder}))]
    if test:
        outcome = outcome_of(folder, tick=tick)
        right, count, names = int((outcome.guesses == outcome.labels).sum()), len(outcome.labels), outcome.classes
        sections[0].note = (f'{right:,} of {count:,} test samples right ({100 * right / count:.2f} %), '
                            f'by {os.path.basename(trained_file(folder))}.')
        samples = [Sample(data_uri(bad.thumb, 'image/jpeg'), bad.name, names[bad.label], names[bad.guess],
                          f'probability of the true class {bad.probability:.3f}') for bad in outcome.worst]
        sections += [Section('Classes', tables=[class_table(outcome)]), confusion_section(outcome),
                     Section('Worst samples', 'Those of the highest loss, as the model sees them.', samples=samples)]
        sections += maps_section(outcome, maps, tick)
    sections.append(Section('How it was made', texts=texts_of(folder, config_of(folder))))
    return render(run_name(folder), sections)


def run_name(folder: str) -> str:
    """What a run is called: its folder, and for a run of a sweep what tells it from its sisters."""
    parts = os.path.abspath(folder).split(os.sep)
    return '/'.join(parts[-5:-1]) if parts[-1] == 'run' and len(parts) > 5 else parts[-1]
