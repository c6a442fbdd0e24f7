# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mmpetl.evaluation import ViewAccuracy


def sample(label, views, classes=4):
    scores = torch.zeros(len(views), classes)
    for view, (guess, margin) in enumerate(views):
        scores[view, guess] = margin
    return dict(gt_label=torch.tensor([label]), view_scores=scores, pred_score=scores.softmax(-1).mean(0))


def test_views_and_groups():
    metric = ViewAccuracy(groups=[0, 0, 1, 1])
    metric.process(None, [sample(0, [(0, 5.), (1, 1.)]), sample(2, [(3, 5.), (3, 5.)]), sample(1, [(2, 9.), (1, 1.)])])
    # Views right: 1 of 2, 0 of 2, 1 of 2. Averages choose 0, 3, 2, in the right group twice.
    assert metric.evaluate(3) == {'acc/view_top1': pytest.approx(1 / 3), 'acc/group_top1': pytest.approx(2 / 3)}


def test_without_groups():
    metric = ViewAccuracy()
    metric.process(None, [sample(3, [(3, 1.)])])
    assert metric.evaluate(1) == {'acc/view_top1': 1.}


def test_refusals():
    with pytest.raises(ValueError, match='keep_views=True'):
        ViewAccuracy().process(None, [dict(gt_label=torch.tensor([0]), pred_score=torch.zeros(4))])
    with pytest.raises(ValueError, match='groups has 2 entries, the model 4 classes'):
        ViewAccuracy(groups=[0, 1]).process(None, [sample(0, [(0, 1.)])])
