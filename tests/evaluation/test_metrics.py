# SPDX-License-Identifier: Apache-2.0
"""Metrics against golden arrays, closed cases and mmpretrain's own."""


import numpy as np
import pytest
import torch
from golden import golden_path
from mmengine.evaluator import Evaluator
from mmpretrain.evaluation import Accuracy, SingleLabelMetric
from mmpretrain.registry import METRICS
from mmpretrain.structures import DataSample

from mmpetl.evaluation import METRIC_KEYS, eleven_point_ap, mean_per_class, roc_auc


@pytest.fixture(scope='module')
def golden():
    return np.load(golden_path('kadapt_metrics'), allow_pickle=False)


def test_functions_equal_golden(golden):
    assert mean_per_class(golden['scores'], golden['labels']) == pytest.approx(
        float(golden['mean_per_class']), abs=1e-12)
    assert eleven_point_ap(golden['scores'], golden['multilabels']) == pytest.approx(float(golden['map11']), abs=1e-12)
    assert roc_auc(golden['auc_scores'], golden['auc_labels']) == pytest.approx(float(golden['auc']), abs=1e-12)
    top1 = Accuracy.calculate(torch.tensor(golden['scores']), torch.tensor(golden['labels']))[0][0]
    assert float(top1) == pytest.approx(100 * float(golden['accuracy']), abs=1e-4)


def _run(metric, scores, labels=None, targets=None, **kwargs):
    samples = []
    for i, score in enumerate(scores):
        sample = DataSample(metainfo=dict(sample_idx=i)).set_pred_score(torch.tensor(score))
        if labels is not None:
            sample.set_gt_label(int(labels[i]))
        if targets is not None:
            sample.set_gt_score(torch.tensor(targets[i], dtype=torch.float32))
        samples.append(sample)
    evaluator = Evaluator(METRICS.build(dict(type=metric, **kwargs)))
    for start in range(0, len(samples), 7):
        evaluator.process(samples[start:start + 7])
    return evaluator.evaluate(len(samples))


def test_registered_metrics_are_per_cent_under_the_names_of_the_table(golden):
    got = _run('mmpetl.MeanPerClass', golden['scores'], golden['labels'])
    assert got == {METRIC_KEYS['mean_per_class']: pytest.approx(100 * float(golden['mean_per_class']), abs=1e-4)}
    got = _run('mmpetl.ROCAUC', golden['auc_scores'], golden['auc_labels'])
    assert got == {METRIC_KEYS['roc_auc']: pytest.approx(100 * float(golden['auc']), abs=1e-4)}
    got = _run('mmpetl.ElevenPointAP', golden['scores'], targets=golden['multilabels'])
    assert got == {METRIC_KEYS['map11']: pytest.approx(100 * float(golden['map11']), abs=1e-4)}
    got = _run('Accuracy', golden['scores'], golden['labels'])
    assert got == {METRIC_KEYS['accuracy']: pytest.approx(100 * float(golden['accuracy']), abs=1e-4)}


def test_mean_per_class_equals_mmpretrain_when_all_classes_occur():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((200, 6)), rng.integers(0, 6, 200)
    recall = SingleLabelMetric.calculate(torch.tensor(scores), torch.tensor(labels), average='macro')[0][1]
    assert 100 * mean_per_class(scores, labels) == pytest.approx(float(recall), abs=1e-3)


def test_mean_per_class_leaves_out_classes_without_images():
    # Class 2 never occurs; one image is taken for it. Recalls: class 0 1/2, class 1 1/1.
    scores = np.eye(3)[[0, 2, 1]]
    assert mean_per_class(scores, np.array([0, 0, 1])) == pytest.approx(0.75)


def test_eleven_point_ap_by_hand():
    # Ranked: right, wrong, right, wrong. Precision 1 up to recall 0.5, then 2/3: levels 0..0.5 are six of eleven.
    scores, targets = np.array([[.9], [.8], [.7], [.6]]), np.array([[1], [0], [1], [0]])
    assert eleven_point_ap(scores, targets) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    padded = eleven_point_ap(np.hstack([scores, scores]), np.hstack([targets, np.zeros_like(targets)]))
    assert padded == pytest.approx((6 + 10 / 3) / 11)  # a class without images does not count


def test_undefined_metrics_are_refused():
    with pytest.raises(ValueError, match='two classes'):
        roc_auc(np.zeros((3, 3)), np.array([0, 1, 1]))
    with pytest.raises(ValueError, match='same label'):
        roc_auc(np.zeros((3, 2)), np.ones(3))
    with pytest.raises(ValueError, match='no image carries'):
        eleven_point_ap(np.zeros((3, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match='diverged'):
        _run('mmpetl.MeanPerClass', np.full((4, 3), np.nan), np.zeros(4))


@pytest.mark.parametrize('multi', [False, True])
def test_scores_are_dumped_in_list_order(tmp_path, multi):
    path = tmp_path / 'sub/scores.npz'
    scores = np.random.default_rng(1).random((5, 3)).astype(np.float32)
    samples = [DataSample(metainfo=dict(sample_idx=i)).set_pred_score(torch.tensor(scores[i])) for i in range(5)]
    for i, sample in enumerate(samples):
        sample.set_gt_label(i % 3)
        if multi:
            sample.set_gt_score(torch.eye(3)[i % 3])
    evaluator = Evaluator(METRICS.build(dict(type='mmpetl.DumpScores', out_file=str(path))))
    evaluator.process(samples[::-1])
    assert evaluator.evaluate(5) == {}
    saved = np.load(path)
    np.testing.assert_array_equal(saved['scores'], scores)
    np.testing.assert_array_equal(saved['labels'], np.eye(3)[[0, 1, 2, 0, 1]] if multi else [0, 1, 2, 0, 1])
    with pytest.raises(ValueError, match='must end in .npz'):
        METRICS.build(dict(type='mmpetl.DumpScores', out_file='a.pkl'))
