"""A picture of what was pruned: one column per run, one row per prompt, the colour says how much of the prompt was
left."""

import io
import math
from typing import BinaryIO, List, Optional, Tuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..weights.io import atomic_write
from .state import PruningState


def timeline(state: PruningState) -> Tuple[List[str], List[List[float]], List[float]]:
    """Columns of the picture.

    Args:
        state: A :class:`mmpetl.pruning.state.PruningState`.

    Returns:
        Labels; for each column the kept share of every prompt's segments, 0 where the prompt is gone; validation values
        (NaN: none).
    """

    def result(phase: str) -> Optional[float]:
        return next(iter(state.results.get(phase, {}).values()), None)

    columns: List[Tuple[str, Tuple[int, int], Optional[float]]] = [('train', (0, 0), result('train'))]
    columns += [(f"-{run['tokens']} / -{run['segments']}", (run['tokens'], run['segments']), run['value'])
                for run in state.runs]
    if state.chosen is not None:
        columns.append(
            (f'chosen\n-{state.chosen[0]} / -{state.chosen[1]}', (state.chosen[0], state.chosen[1]), result('retrain')))
    shares = []
    for _, pair, _ in columns:
        tokens, segments = state.masks(pair)
        shares.append((segments.float().mean(1) * tokens).tolist())
    return [c[0] for c in columns], shares, [math.nan if c[2] is None else c[2] for c in columns]


def draw(state: PruningState, path: str) -> None:
    """Write the picture as PNG, atomically.

    Args:
        state: A :class:`mmpetl.pruning.state.PruningState`.
        path: Destination.
    """
    labels, shares, values = timeline(state)
    figure = Figure(
        figsize=(max(4., 1.5 + 0.55 * len(labels)), min(20., 3. + 0.16 * state.num_tokens)), layout='constrained')
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    top.plot(range(len(labels)), values, 'o-')
    top.set_ylabel('validation')
    image = bottom.imshow(list(zip(*shares)), vmin=0, vmax=1, aspect='auto', cmap='viridis', interpolation='nearest')
    bottom.set_xticks(range(len(labels)), labels, rotation=60, ha='right')
    bottom.set_xlabel('run: pruned tokens / segments per token')
    bottom.set_ylabel('prompt')
    figure.colorbar(image, ax=bottom, label='kept share of segments')
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    atomic_write(path, lambda file: _write(file, buffer.getvalue()))


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
