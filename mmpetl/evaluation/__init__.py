# SPDX-License-Identifier: Apache-2.0
"""Metrics that upstream lacks, means over suites, efficiency scores. Importing this package registers the metrics."""

from .efficiency import pe_score, ppt_score
from .means import Mean, mean_of, suite_means
from .metrics import (
    METRIC_KEYS,
    ROCAUC,
    DumpScores,
    ElevenPointAP,
    MeanPerClass,
    eleven_point_ap,
    mean_per_class,
    roc_auc,
)
from .video_metrics import ViewAccuracy

__all__ = [
    'DumpScores', 'ElevenPointAP', 'METRIC_KEYS', 'Mean', 'MeanPerClass', 'ROCAUC', 'ViewAccuracy', 'eleven_point_ap',
    'mean_of', 'mean_per_class', 'pe_score', 'ppt_score', 'roc_auc', 'suite_means'
]
