# SPDX-License-Identifier: Apache-2.0
"""A picture of what was pruned: one column per run, one row per prompt, the colour says how much of the prompt is
left."""

import math
from typing import List, Optional, Tuple

from matplotlib.figure import Figure

from ..weights.io import atomic_write
from .state import PruningState


def timeline(state: PruningState) -> Tuple[List[str], List[List[float]], List[float]]:
    """Columns of the picture: labels; for each column the kept share of every prompt's segments, 0 where the prompt is
    gone; validation values (NaN: none)."""
    train, retrain = (next(iter(state.results.get(run, {}).values()), None) for run in ('train', 'retrain'))
    columns: List[Tuple[str, Tuple[int, ...], Optional[float]]] = [('train', (0, 0), train)]
    columns += [(f"-{run['tokens']} / -{run['segments']}", (run['tokens'], run['segments']), run['value'])
                for run in state.runs]
    if state.chosen is not None:
        columns.append(('chosen\n-{} / -{}'.format(*state.chosen), tuple(state.chosen), retrain))
    masks = [state.masks(pair) for _, pair, _ in columns]
    return ([label for label, _, _ in columns],
            [(segments.float().mean(1) * tokens).tolist() for tokens, segments in masks],
            [math.nan if value is None else value for _, _, value in columns])


def draw(state: PruningState, path: str) -> None:
    """Write the picture as PNG, atomically."""
    labels, shares, values = timeline(state)
    size = (max(4., 1.5 + 0.55 * len(labels)), min(20., 3. + 0.16 * state.num_tokens))
    figure = Figure(figsize=size, layout='constrained')  # no pyplot: it would look for a display
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    top.plot(range(len(labels)), values, 'o-')
    top.set_ylabel('validation')
    image = bottom.imshow(list(zip(*shares)), vmin=0, vmax=1, aspect='auto', cmap='viridis', interpolation='nearest')
    bottom.set_xticks(range(len(labels)), labels, rotation=60, ha='right')
    bottom.set(xlabel='run: pruned tokens / segments per token', ylabel='prompt')
    figure.colorbar(image, ax=bottom, label='kept share of segments')
    atomic_write(path, lambda file: figure.savefig(file, format='png', dpi=110))
