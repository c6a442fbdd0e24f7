# SPDX-License-Identifier: Apache-2.0
"""Which hyper-parameters to try next: pure functions of the scores that are known.

A search never keeps state of its own. What it proposes follows from the results on disk, so a sweep that was killed
goes on where it was, and several workers that look at the same results agree.
"""

import itertools
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

#: Hyper-parameters as sorted-by-config pairs; hashable, so that scores can be kept by them.
Params = Tuple[Tuple[str, Any], ...]
#: Known scores; None is a trial that failed or was skipped: it is never better than anything.
Scores = Mapping[Params, Optional[float]]

LR, DECAY = 'optim_wrapper.optimizer.lr', 'optim_wrapper.optimizer.weight_decay'
#: Short names of config keys.
ALIASES = {'lr': LR, 'wd': DECAY, 'weight_decay': DECAY}


class Search:
    """Abstract. ``order`` lists the trials that are known or wanted, in the order of the published procedure."""

    def order(self, scores: Scores) -> List[Params]:
        """All parameters that the procedure has reached, given the known scores, in its order."""
        raise NotImplementedError

    def propose(self, scores: Scores) -> List[Params]:
        """Parameters to try now, any number of them at once; empty when the search is over."""
        return [p for p in self.order(scores) if p not in scores]

    def best(self, scores: Scores) -> Optional[Params]:
        """The parameters with the highest score, the earlier ones on a tie; None if every trial failed."""
        found = [p for p in self.order(scores) if scores.get(p) is not None]
        return max(found, key=lambda p: (scores[p], -found.index(p))) if found else None

    def budget(self) -> int:
        """Largest number of trials."""
        raise NotImplementedError


class Grid(Search):
    """Every combination of the values.

    Args:
        grid: Values by config key; the first key varies slowest. Empty: nothing to search, one combination without
            parameters.

    Raises:
        ValueError: If a key has no values.
    """

    def __init__(self, grid: Mapping[str, Sequence[Any]]) -> None:
        for key, values in grid.items():
            if not isinstance(values, (list, tuple)) or not values:
                raise ValueError(f'grid: {key} needs a list of values, got {values!r}')
        self.combinations: List[Params] = [tuple(zip(grid, values)) for values in itertools.product(*grid.values())]

    def order(self, scores: Scores) -> List[Params]:
        return self.combinations

    def budget(self) -> int:
        return len(self.combinations)


class CoarseToFine(Search):
    """ELEVATER's search: for each learning rate, weight decay from coarse to fine on a grid of 97 values.

    Seven decays 16 steps apart are tried first. Then, with a span of 8, 4, 2 and 1 steps, the two neighbours of the
    best one; both are fixed before either is tried, and the best moves at once on strict improvement. At most 15 trials
    per rate.

    Args:
        lrs: Learning rates.
        decays: Weight decays in ascending order.
        lr_key: Config key of the learning rate.
        decay_key: Config key of the weight decay.

    Source: ELEVATER toolkit, arXiv 2204.08790.
    """

    def __init__(self,
                 lrs: Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
                 decays: Optional[Sequence[float]] = None,
                 lr_key: str = LR,
                 decay_key: str = DECAY) -> None:
        self.lrs = list(lrs)
        self.decays = list(decays) if decays is not None else [10 ** (-6 + 12 * i / 96) for i in range(97)]
        self.lr_key, self.decay_key = lr_key, decay_key

    def params(self, lr: float, index: int) -> Params:
        """Parameters of a rate and a position on the grid of decays."""
        return ((self.lr_key, lr), (self.decay_key, self.decays[index]))

    def _walk(self, lr: float, scores: Scores) -> List[int]:
        """Positions reached for one rate, in order; ends with those that must be known before it can go on."""
        last = len(self.decays) - 1
        visited = list(range(0, last + 1, 16))

        def score(index: int) -> float:
            value = scores[self.params(lr, index)]
            return float('-inf') if value is None else value

        def known(indices: Sequence[int]) -> bool:
            return all(self.params(lr, i) in scores for i in indices)

        if not known(visited):
            return visited
        peak = max(visited, key=lambda i: (score(i), -i))
        if score(peak) == float('-inf'):
            return visited  # nothing worked with this rate, so there is nothing to refine
        for span in (8, 4, 2, 1):
            sides = [max(peak - span, 0), min(peak + span, last)]
            visited += [i for i in dict.fromkeys(sides) if i not in visited]
            if not known(sides):
                return visited
            for side in sides:
                if score(side) > score(peak):
                    peak = side
        return visited

    def order(self, scores: Scores) -> List[Params]:
        return [self.params(lr, i) for lr in self.lrs for i in self._walk(lr, scores)]

    def budget(self) -> int:
        return len(self.lrs) * (len(range(0, len(self.decays), 16)) + 8)


def build_search(cfg: Mapping[str, Any]) -> Search:
    """The search that ``cfg.sweep`` describes.

    Args:
        cfg: ``search`` 'grid' (default; with ``grid``) or 'coarse_to_fine' (with ``lrs`` where others are wanted).

    Raises:
        ValueError: If the kind is unknown.
    """
    kind = cfg.get('search', 'grid')
    if kind == 'grid':
        return Grid(dict(cfg.get('grid') or {}))
    if kind == 'coarse_to_fine':
        return CoarseToFine(**({'lrs': cfg['lrs']} if cfg.get('lrs') else {}))
    raise ValueError(f"sweep.search={kind!r}: choose 'grid' or 'coarse_to_fine'")


def diverges(params: Mapping[str, Any]) -> bool:
    """Whether SGD with these parameters grows the weights without bound: learning rate times weight decay is 2 or
    more."""
    lr, decay = params.get(LR), params.get(DECAY)
    return lr is not None and decay is not None and lr * decay >= 2


def as_dict(params: Params) -> Dict[str, Any]:
    """Parameters as config options."""
    return dict(params)


def describe_params(params: Mapping[str, Any], between: str = ' ') -> str:
    """Parameters for people: 'lr=0.01 weight_decay=1.778e-06', last parts of the keys and four digits."""
    shown = {
        key.split('.')[-1]: format(value, '.4g') if isinstance(value, float) else value
        for key, value in params.items()
    }
    return between.join(f'{key}={value}' for key, value in shown.items())
