# SPDX-License-Identifier: Apache-2.0
"""Accuracy over parameters, memory and time as one plot: families by colour, bars over seeds, the best trade-offs."""

import math
import statistics
from dataclasses import dataclass
from typing import Any, BinaryIO, List, Optional, Sequence, Tuple

from ..datasets.tables import get_suite
from ..names import printable
from .families import ORDER
from .report import Row, mean_label, memory_of, tasks_of, time_of
from .short_names import short_names

#: One colour per family in the order of `ORDER`: Okabe and Ito's, which the colour-blind tell apart, and greys.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#B8A800', '#7F7F7F')
MARKERS = 'osD^vP*Xh'


def pareto(points: Sequence[Tuple[float, float]]) -> List[int]:
    """Positions of the points that no other point beats in both cost (first, lower is better) and score (second), by
    rising cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: List[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front


@dataclass
class Point:
    """One method in one panel: label, family, cost, score, and the standard deviation of the score over seeds."""
    label: str
    family: str
    cost: float
    score: float
    spread: Optional[float]


def panels_of(rows: Sequence[Row]) -> List[Tuple[str, List[Point]]]:
    """Label and points of every panel: trainable parameters, memory, time of a run; a panel of which nothing is known
    is left out. Methods without a complete mean have no point."""
    tasks, labels = tasks_of(rows), short_names([row.name for row in rows])
    memory_label, memory = memory_of(rows)
    time_label, seconds = time_of(rows)
    costs: List[Tuple[str, List[Optional[float]]]] = [
        ('trainable parameters, head included', [row.average('params', tasks) for row in rows]),
        (memory_label, [None if m is None else m / 2**30 for m in memory]), (time_label, seconds)]
    panels = []
    for label, values in costs:
        points = []
        for row, cost in zip(rows, values):
            score, runs = row.average('mean', tasks), row.per_run(tasks)
            if score is not None and cost:
                spread = statistics.stdev(runs) if runs and len(runs) > 1 else None
                points.append(Point(printable(labels[row.name]), row.family, cost, score, spread))
        if points:
            panels.append((label, points))
    return panels


def place_labels(axes: Any, points: Sequence[Tuple[float, float]], texts: Sequence[str], size: float = 7.5,
                 bars: Sequence[Optional[float]] = ()) -> List[Any]:
    """Write a label beside each point such that none covers another label or a point; one that has no room nearby moves
    away and gets a line.

    Args:
        axes: Axes of matplotlib with their final limits, of a figure with an Agg canvas.
        points: (x, y) in data units.
        texts: One per point; no mathematics, no markup.
        size: Of the letters, in points.
        bars: Half the length of the bar of each point, in data units, which labels keep off too.

    Returns:
        The annotations, in the order of the points.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox
    figure = axes.figure
    figure.canvas.draw()  # lays out: only then are places in pixels known
    renderer, inside = figure.canvas.get_renderer(), axes.get_window_extent()
    here = [tuple(axes.transData.transform(point)) for point in points]
    unit = size * figure.dpi / 72
    taken = [Bbox.from_bounds(x - unit * .4, y - unit * .4, unit * .8, unit * .8) for x, y in here]
    for (x, y), half in zip(points, bars):
        if half:
            (left, low), (_, high) = axes.transData.transform([(x, y - half), (x, y + half)])
            taken.append(Bbox.from_bounds(left - 2, low, 4, high - low))
    written: List[Any] = [None] * len(points)
    for i in sorted(range(len(points)), key=lambda i: -here[i][1]):
        note = axes.annotate(texts[i], points[i], xytext=(0, 0), textcoords='offset points', fontsize=size,
                             parse_math=False, annotation_clip=False,
                             path_effects=[withStroke(linewidth=2, foreground='white')])
        box = note.get_window_extent(renderer)
        left, low, far = _room(here[i], box.width + 2, box.height + 1, taken, inside, unit)
        note.set_position(((left - here[i][0] + 1) * 72 / figure.dpi, (low - here[i][1] + unit * .2) * 72 / figure.dpi))
        taken.append(Bbox.from_bounds(left, low, box.width + 2, box.height + 1))
        if far:
            end = (min(max(here[i][0], left), left + box.width), low + box.height / 2)
            line = axes.transData.inverted().transform([here[i], end])
            axes.plot(*zip(*line), color='0.6', linewidth=.5, zorder=1, scalex=False, scaley=False)
        written[i] = note
    return written


def _room(at: Tuple[float, float], width: float, height: float, taken: Sequence[Any], inside: Any,
          unit: float) -> Tuple[float, float, bool]:
    """Left and lower edge of the nearest free place for a label around a point, in pixels, and whether it is far."""
    from matplotlib.transforms import Bbox
    # Around the point in widening rings, right and left before above and below, where text reads best.
    for step in range(120):
        radius = unit * (.55 + .35 * step)
        for turn in (0.25, -0.25, 2.9, -2.9, 1.57, -1.57, 0.9, -0.9, 2.2, -2.2, 0.6, -0.6, 2.55, -2.55):
            x, y = at[0] + radius * math.cos(turn), at[1] + radius * math.sin(turn)
            left = x if math.cos(turn) > .1 else x - width if math.cos(turn) < -.1 else x - width / 2
            low = y - height / 2
            box = Bbox.from_bounds(left, low, width, height)
            if (box.x0 >= inside.x0 and box.x1 <= inside.x1 and box.y0 >= inside.y0 and box.y1 <= inside.y1
                    and not any(box.overlaps(other) for other in taken)):
                return left, low, radius > 1.7 * unit
    return at[0], at[1], False  # more labels than the panel has room for


def plot(rows: Sequence[Row], file: BinaryIO, kind: str = 'png', stacked: bool = False) -> None:
    """Accuracy over trainable parameters, memory and time of a run; see :func:`panels_of`.

    Colour and mark say the family, bars one standard deviation over the seeds, the line the best trade-offs. Methods
    without a complete mean are named, not drawn.

    Args:
        rows: Rows of one suite.
        file: Receives the picture.
        kind: 'png' or 'svg'.
        stacked: Panels one below the other, for a page of text, instead of side by side.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    panels = panels_of(rows)
    count = max(len(panels), 1)
    size = (8.2, .6 + 4.8 * count) if stacked else (max(6., 5.4 * len(panels)), 5.2)
    figure = Figure(figsize=size, layout='constrained', dpi=150)
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(*((count, 1) if stacked else (1, count)), squeeze=False, sharey=True).ravel()
    found = [family for family in ORDER if any(p.family == family for _, points in panels for p in points)]
    for axes, (label, points) in zip(all_axes, panels):
        _draw(axes, label, points)
    tasks = tasks_of(rows)
    what = tasks[0] if len(tasks) == 1 else mean_label(rows)
    for axes in all_axes[:None if stacked else 1]:
        axes.set_ylabel(printable(f'{get_suite(rows[0].suite).title}, {what}, %'), parse_math=False)
    handles = [_handle(family) for family in found]
    if panels:
        figure.legend(
            handles=handles, loc='outside upper center', ncols=min(len(found) + 1, 6), fontsize=8, frameon=False)
    drawn = {p.label for _, points in panels for p in points}
    labels = short_names([row.name for row in rows])
    absent = [printable(label) for label in labels.values() if printable(label) not in drawn]
    if absent:
        figure.supxlabel('incomplete, not drawn: ' + _listed(absent), fontsize=7, parse_math=False)
    for axes, (_, points) in zip(all_axes, panels):  # last: where they go depends on everything else
        place_labels(axes, [(p.cost, p.score) for p in points], [p.label for p in points],
                     bars=[p.spread for p in points])
    figure.set_layout_engine('none')  # else saving would move the axes away from their labels
    figure.savefig(file, format=kind, dpi=150, metadata={'Date': None} if kind == 'svg' else None)


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = len(names) - most
    return ', '.join(names[:most]) + (f' and {more} more' if more > 0 else '')


def _handle(family: str) -> Any:
    from matplotlib.lines import Line2D
    at = ORDER.index(family)
    return Line2D([], [], color=COLOURS[at], marker=MARKERS[at], linestyle='', label=family)


def _draw(axes: Any, label: str, points: Sequence[Point]) -> None:
    for point in points:
        at = ORDER.index(point.family)
        mark, *_ = axes.errorbar(point.cost, point.score, yerr=point.spread, color=COLOURS[at], marker=MARKERS[at],
                                 markersize=6, elinewidth=.8, capsize=2, linestyle='', alpha=.9, zorder=3)
        mark.set_clip_on(False)  # whole at 0 and at 100
    front = [(points[i].cost, points[i].score) for i in pareto([(p.cost, p.score) for p in points])]
    if len(front) > 1:
        axes.step(*zip(*front), where='post', linewidth=1, color='0.55', zorder=2)
    low, high = min(p.cost for p in points), max(p.cost for p in points)
    if high > 3 * low:
        axes.set_xscale('log')
    axes.set_xlabel(label, fontsize=9)
    axes.margins(x=.14, y=.1)
    axes.set_ylim(max(axes.get_ylim()[0], 0), min(axes.get_ylim()[1], 100))  # per cent, whatever the bars say
    axes.tick_params(which='both', labelsize=8)
    axes.grid(alpha=.25)
