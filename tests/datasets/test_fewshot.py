# SPDX-License-Identifier: Apache-2.0
"""Few-shot subsets and validation splits: golden arrays and closed formulas."""


import numpy as np
import pytest
from golden import golden_path

from mmpetl.datasets.fewshot import few_shot_positions, validation_positions


@pytest.fixture(scope='module')
def golden():
    return np.load(golden_path('kadapt_fewshot'), allow_pickle=False)


@pytest.mark.parametrize('kind', ['mc', 'ml'])
@pytest.mark.parametrize('shots', [2, 5])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_subset_equals_the_published_sampler(golden, kind, shots, seed):
    if kind == 'mc':
        labels = [[int(c)] for c in golden['mc_labels']]
    else:
        labels = [np.flatnonzero(row).tolist() for row in golden['ml_labels']]
    got = few_shot_positions(labels, 4, shots, seed)
    np.testing.assert_array_equal(got, golden[f'{kind}_k{shots}_seed{seed}'])


def test_validation_split_equals_the_published_one(golden):
    subset = golden['mc_k5_seed0']
    labels = [[int(golden['mc_labels'][p])] for p in subset]
    np.testing.assert_array_equal(validation_positions(labels, 4), golden['mc_k5_seed0_val_positions'])


def test_one_label_per_image_gives_min_of_shots_and_class_size():
    rng = np.random.default_rng(0)
    labels = [[int(c)] for c in rng.choice(6, 300, p=[.5, .3, .1, .05, .03, .02])]
    sizes = np.bincount(np.ravel(labels), minlength=6)
    for shots in (1, 5, 20, 50):
        chosen = few_shot_positions(labels, 6, shots, seed=3)
        got = np.bincount([labels[p][0] for p in chosen], minlength=6)
        np.testing.assert_array_equal(got, np.minimum(shots, sizes))
        held_out = validation_positions([labels[p] for p in chosen], 6)
        held = np.bincount([labels[chosen[p]][0] for p in held_out], minlength=6)
        np.testing.assert_array_equal(held, np.ceil(got / 5))


def test_all_shots_and_images_without_a_class():
    labels = [[], [0], [], [1], [], [0]]
    assert few_shot_positions(labels, 2, -1, 0) == list(range(6))
    chosen = few_shot_positions(labels * 20, 2, 2, 0)
    assert sum(not (labels * 20)[p] for p in chosen) <= 2
    with pytest.raises(ValueError, match='shots=0'):
        few_shot_positions(labels, 2, 0, 0)


def test_validation_of_several_labels_counts_an_image_for_all_of_them():
    # Ten images carry both classes: two of them serve both quotas.
    assert validation_positions([[0, 1]] * 10, 2) == [0, 1]
    # Class 1 appears only together with class 0 at the end: class 0's quota is filled from the front first.
    assert validation_positions([[0]] * 8 + [[0, 1]] * 2, 2) == [0, 1, 8]
