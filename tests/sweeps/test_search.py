# SPDX-License-Identifier: Apache-2.0
"""Searches: the published coarse-to-fine walk, grids, failures."""

import math

import numpy as np
import pytest
from golden import golden_path

from mmpetl.sweeps.search import DECAY, LR, CoarseToFine, Grid, build_search, describe_params, diverges


def peak(params):
    """The function that the golden trace was made with."""
    lr, l2 = params[LR], params[DECAY]
    return 100 - 10 * abs(math.log10(lr) + 2.6) - 3 * abs(math.log10(l2) + 1.37)


def one_by_one(search, score):
    scores, trace = {}, []
    while search.propose(scores):
        params = search.propose(scores)[0]
        scores[params] = score(dict(params))
        trace.append((*dict(params).values(), scores[params]))
    return scores, trace


def test_walk_equals_the_published_trace():
    golden = np.load(golden_path('kadapt_search'), allow_pickle=False)
    search = CoarseToFine()
    scores, trace = one_by_one(search, peak)
    np.testing.assert_allclose(trace, golden['trace_idx'], rtol=1e-3)
    np.testing.assert_allclose(list(dict(search.best(scores)).values()), golden['best_idx'], rtol=1e-9)
    assert search.budget() == len(trace) == 90


def test_all_at_once_reaches_the_same_points():
    """Workers may run everything that is proposed at the same time: the walk only depends on scores."""
    search = CoarseToFine()
    one, _ = one_by_one(search, peak)
    scores, rounds = {}, 0
    while search.propose(scores):
        for params in search.propose(scores):
            scores[params] = peak(dict(params))
        rounds += 1
    assert set(scores) == set(one) and rounds == 5


def test_grid_finds_the_peak_of_any_unimodal_score():
    """Coarse to fine is exact where the score has one peak: compare with all 97 decays."""
    for centre in (-6., -3.21, 0.4, 5.9):
        search = CoarseToFine(lrs=[0.1])
        scores, trace = one_by_one(search, lambda p, c=centre: -abs(math.log10(p[DECAY]) - c))
        want = min(search.decays, key=lambda d: abs(math.log10(d) - centre))
        assert dict(search.best(scores))[DECAY] == want and len(trace) <= 15


def test_failed_trials_are_never_best():
    search = CoarseToFine(lrs=[1e-3, 1e-2])
    scores, trace = one_by_one(search, lambda p: None if p[LR] == 1e-3 or p[DECAY] > 1 else peak(p))
    assert sum(t[0] == 1e-3 for t in trace) == 7  # nothing to refine where all failed
    best = dict(search.best(scores))
    assert best[LR] == 1e-2 and best[DECAY] < 1
    assert search.best({p: None for p in scores}) is None
    scores = {p: -5. for p in scores}  # negative scores are scores
    assert search.best(scores) is not None


def test_grid_order_ties_and_empty_grid():
    grid = Grid({'a': [3, 1], 'b': ['x', 'y']})
    assert [dict(p)
            for p in grid.propose({})] == [dict(a=3, b='x'),
                                           dict(a=3, b='y'),
                                           dict(a=1, b='x'),
                                           dict(a=1, b='y')]
    scores = {p: 1.0 for p in grid.combinations}
    assert grid.propose(scores) == [] and dict(grid.best(scores)) == dict(a=3, b='x')
    assert Grid({}).combinations == [()] and Grid({}).budget() == 1
    with pytest.raises(ValueError, match='a needs a list of values'):
        Grid({'a': 3})


def test_search_from_config():
    assert build_search(dict(grid={'a': [1, 2]})).budget() == 2
    assert build_search(dict(search='coarse_to_fine', lrs=[1e-3])).budget() == 15
    with pytest.raises(ValueError, match="choose 'grid' or 'coarse_to_fine'"):
        build_search(dict(search='bayes'))
    assert diverges({LR: 0.1, DECAY: 20.}) and not diverges({LR: 0.1, DECAY: 19.}) and not diverges({LR: 0.1})


def test_parameters_for_people():
    params = {LR: 0.01, DECAY: 10**-5.75, 'model.backbone.petl.0.alpha': 8}
    assert describe_params(params) == 'lr=0.01 weight_decay=1.778e-06 alpha=8'
