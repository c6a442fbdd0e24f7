# SPDX-License-Identifier: Apache-2.0
"""Mean recall per class, area under the ROC curve, 11-point average precision, and a dump of the scores for
submissions.

Accuracy is mmpretrain's own ``Accuracy``. The functions return fractions, the metric classes per cent, as mmpretrain's
do.
"""

import os
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from sklearn.metrics import precision_recall_curve, recall_score, roc_auc_score

from ..registry import METRICS
from ..weights.io import atomic_write

#: Name under which MMEngine logs each metric of the tables.
METRIC_KEYS = {
    'accuracy': 'accuracy/top1',
    'mean_per_class': 'score/mean_per_class',
    'roc_auc': 'score/roc_auc',
    'map11': 'score/map11'
}


def mean_per_class(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur in ``labels`` of the share of their images whose highest score is right.

    Args:
        scores: (N, C).
        labels: (N,) class ids.
    """
    labels = np.asarray(labels)
    # Unless told, scikit-learn averages over classes that are only predicted, too, with a recall of 0.
    return float(recall_score(labels, np.asarray(scores).argmax(1), labels=np.unique(labels), average='macro'))


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve of class 1.

    Args:
        scores: (N, 2).
        labels: (N,) of 0 and 1.

    Raises:
        ValueError: If there are not two classes of scores, or only one class of labels.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape[1] != 2:
        raise ValueError(f'ROC AUC needs scores of two classes, got shape {scores.shape}')
    if len(np.unique(labels)) != 2:
        raise ValueError('ROC AUC is not defined: all images have the same label')
    return float(roc_auc_score(labels, scores[:, 1]))


def eleven_point_ap(scores: np.ndarray, targets: np.ndarray) -> float:
    """11-point interpolated average precision (PASCAL VOC 2007), mean over the classes that occur.

    For each recall 0, 0.1, ..., 1 the highest precision at that recall or beyond. As published, the curve begins at
    precision 1 and recall 0, so the first of the eleven terms is always 1.

    Args:
        scores: (N, C).
        targets: (N, C) of 0 and 1.

    Raises:
        ValueError: If the shapes differ or no class occurs.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.shape != targets.shape or scores.ndim != 2:
        raise ValueError(f'scores {scores.shape} and targets {targets.shape} must both be (N, C)')
    present = np.flatnonzero(targets.any(0))
    if not len(present):
        raise ValueError('11-point AP is not defined: no image carries any class')
    total = 0.0
    for c in present:
        precision, recall, _ = precision_recall_curve(targets[:, c], scores[:, c])
        # From 1 down: in floats 1 - 0.7 is at most 3 / 10, but 3 * 0.1 is more and would miss a recall of 3 in 10.
        total += np.mean([precision[recall >= level].max() for level in np.linspace(1, 0, 11)])
    return float(total / len(present))


class _ScoreMetric(BaseMetric):
    """Collects (score, target) of every image; a subclass turns both arrays into one number."""

    default_prefix: Optional[str] = 'score'
    name = ''

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep scores (C,) and target of each sample."""
        for sample in data_samples:  # NumPy has no bfloat16
            self.results.append((sample['pred_score'].float().cpu().numpy(), self.target(sample)))

    def target(self, sample: dict) -> np.ndarray:
        """The label of a sample; (1,) here."""
        return sample['gt_label'].cpu().numpy()

    def arrays(self, results: List[Tuple[np.ndarray, np.ndarray]]) -> Tuple[np.ndarray, np.ndarray]:
        """Scores (N, C) and targets of all samples.

        Raises:
            ValueError: If a score is not finite: the model has diverged, and any number would mislead.
        """
        scores = np.stack([s for s, _ in results])
        if not np.isfinite(scores).all():
            raise ValueError(
                f'{type(self).__name__}: {int((~np.isfinite(scores)).any(1).sum())} of {len(scores)} predictions are '
                'not finite; training has diverged (lower the learning rate)')
        return scores, np.stack([t for _, t in results])


@METRICS.register_module()
class MeanPerClass(_ScoreMetric):
    """Mean recall per class in per cent, logged as ``score/mean_per_class``; see :func:`mean_per_class`."""

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Called by MMEngine on the samples of all ranks."""
        scores, labels = self.arrays(results)
        return {'mean_per_class': 100 * mean_per_class(scores, labels[:, 0])}


@METRICS.register_module()
class ROCAUC(_ScoreMetric):
    """Area under the ROC curve in per cent, logged as ``score/roc_auc``; see :func:`roc_auc`."""

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Called by MMEngine on the samples of all ranks."""
        scores, labels = self.arrays(results)
        return {'roc_auc': 100 * roc_auc(scores, labels[:, 0])}


@METRICS.register_module()
class ElevenPointAP(_ScoreMetric):
    """11-point mean average precision in per cent, logged as ``score/map11``; see :func:`eleven_point_ap`."""

    def target(self, sample: dict) -> np.ndarray:
        """Indicator (C,) of the classes of a sample."""
        if 'gt_score' in sample:
            return sample['gt_score'].cpu().numpy()
        indicator = np.zeros(len(sample['pred_score']), np.float32)
        indicator[sample['gt_label'].cpu().numpy()] = 1
        return indicator

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Called by MMEngine on the samples of all ranks."""
        return {'map11': 100 * eleven_point_ap(*self.arrays(results))}


@METRICS.register_module()
class DumpScores(BaseMetric):
    """Write the scores of every image, in the order of the list, to one ``.npz`` at each evaluation; adds no number to
    the log.

    The file holds ``scores`` (N, C) float32 and ``labels`` (N,), or (N, C) in a multi-label task.

    Args:
        out_file: The file; relative paths are relative to the working directory of the process.
        **kwargs: Other arguments of :class:`mmengine.evaluator.BaseMetric`.
    """

    default_prefix: Optional[str] = 'dump'

    def __init__(self, out_file: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not out_file.endswith('.npz'):
            raise ValueError(f'DumpScores: out_file {out_file!r} must end in .npz')
        self.out_file = out_file

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep index, scores (C,) and target of each sample."""
        for sample in data_samples:
            target = sample['gt_score'] if 'gt_score' in sample else sample['gt_label']
            self.results.append(
                (int(sample['sample_idx']), sample['pred_score'].float().cpu().numpy(), target.cpu().numpy()))

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Called by MMEngine on the samples of all ranks; writes the file."""
        # MMEngine takes turns among the ranks, which is the order of the list under its own sampler only.
        results = sorted(results, key=lambda row: row[0])
        scores = np.stack([row[1] for row in results]).astype(np.float32)
        labels = np.stack([row[2] for row in results])
        if is_main_process():
            os.makedirs(os.path.dirname(os.path.abspath(self.out_file)), exist_ok=True)
            atomic_write(
                self.out_file, lambda file: np.savez_compressed(
                    file, scores=scores, labels=labels[:, 0] if labels.shape[1] == 1 else labels))
        return {}
