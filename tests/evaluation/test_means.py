# SPDX-License-Identifier: Apache-2.0
"""Suite means and efficiency scores against published numbers."""

import pytest

from mmpetl.datasets.tables import SUITES
from mmpetl.evaluation import pe_score, ppt_score, suite_means

# Per-task rows as published, in the order of the table.
ROWS = {
    'full': ('68.9 87.7 64.3 97.2 86.9 87.4 38.8 79.7 95.7 84.2 73.9 56.3 58.6 41.7 65.5 57.5 46.7 25.7 29.1', 75.88,
             83.36, 47.64, 65.57),
    'vpt-deep': ('78.8 90.8 65.8 98.0 88.3 78.1 49.6 81.8 96.1 83.4 68.4 68.5 60.0 46.5 72.8 73.6 47.9 32.9 37.8',
                 78.48, 82.43, 54.98, 69.43),
    'linear': ('63.4 85.0 63.2 97.0 86.3 36.6 51.0 78.5 87.5 68.6 74.0 34.3 30.6 33.2 55.4 12.5 20.0 9.6 19.2', 68.93,
               77.16, 26.84, 52.94)
}


@pytest.mark.parametrize('name', ROWS)
def test_vtab_means_equal_the_published_ones(name):
    text, natural, specialized, structured, all19 = ROWS[name]
    means = suite_means('vtab', dict(zip(SUITES['vtab'].tasks, map(float, text.split()))))
    # Papers average unrounded task scores.
    assert means['Natural'].value == pytest.approx(natural, abs=0.03)
    assert means['Specialized'].value == pytest.approx(specialized, abs=0.03)
    assert means['Structured'].value == pytest.approx(structured, abs=0.03)
    assert means['mean of 19'].value == pytest.approx(all19, abs=0.03)
    assert means['mean of 3 groups'].value == pytest.approx((natural + specialized + structured) / 3, abs=0.03)


def test_fgvc_mean():
    scores = dict(zip(SUITES['fgvc'].tasks, (88.5, 84.2, 99.0, 90.2, 83.6)))
    assert suite_means('fgvc', scores) == {'mean of 5': suite_means('fgvc', scores)['mean of 5']}
    assert suite_means('fgvc', scores)['mean of 5'].value == pytest.approx(89.10, abs=1e-9)


def test_a_missing_task_leaves_the_means_without_value():
    scores = {name: 50.0 for name in SUITES['vtab'].tasks}
    scores['dmlab'] = None
    del scores['kitti']
    means = suite_means('vtab', scores)
    assert means['Natural'].value == 50 and means['Structured'].value is None
    assert (means['Structured'].have, means['Structured'].need) == (6, 8)
    assert means['mean of 19'].value is None and means['mean of 3 groups'].value is None
    assert (means['mean of 3 groups'].have, means['mean of 3 groups'].need) == (17, 19)
    with pytest.raises(ValueError, match="no task 'cifar-10'"):
        suite_means('vtab', {'cifar-10': 1.0})


@pytest.mark.parametrize('score, params, want', [  # README means and the scores read off its figure's formula
    (68.92, 79699.15, 0.6890), (66.32, 29523.15, 0.6631), (65.08, 1237587.15, 0.6473), (62.79, 77907.15, 0.6277),
    (61.48, 176979.15, 0.6143), (65.49, 87878739.15, 0.4980)])
def test_pe_equals_the_published_figure(score, params, want):
    assert pe_score(score / 100, params) == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize('score, millions, want', [(71.44, 0.16, 0.71), (69.43, 0.56, 0.68), (84.78, 0.77, 0.82),
                                                   (88.48, 0.46, 0.87)])
def test_ppt_equals_the_published_table(score, millions, want):
    assert round(ppt_score(score / 100, millions * 1e6), 2) == want


def test_efficiency_limits():
    assert pe_score(50, 0) == ppt_score(50, 0) == 50
    assert ppt_score(1, 9e7) == pytest.approx(0.36787944)  # log10(10) = 1
    with pytest.raises(ValueError, match='cannot have -1'):
        pe_score(1, -1)
