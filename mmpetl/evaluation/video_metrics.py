# SPDX-License-Identifier: Apache-2.0
"""What several test views are worth: accuracy of single views beside that of their average."""

from typing import Any, Dict, List, Optional, Sequence

import torch
from mmengine.evaluator import BaseMetric

from ..registry import METRICS


@METRICS.register_module()
class ViewAccuracy(BaseMetric):
    """Accuracies of a multi-view test, as fractions like those of mmaction2's ``AccMetric``.

    ``acc/view_top1`` is the mean accuracy of the single views; it needs a head with ``keep_views=True``.
    ``acc/group_top1`` counts a video as right when the class of the averaged scores lies in the same group as its
    label; it is given where ``groups`` are.

    Args:
        groups: Group of every class, for example ``[0, 0, 1, 1]``.
        **kwargs: Arguments of :class:`mmengine.evaluator.BaseMetric`.
    """

    default_prefix = 'acc'

    def __init__(self, groups: Optional[Sequence[int]] = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups = None if groups is None else torch.tensor(list(groups))

    def process(self, data_batch: Any, data_samples: Sequence[Dict[str, Any]]) -> None:
        """Keep what is right and wrong of every video.

        Raises:
            ValueError: If the samples have no scores of single views, or a class has no group.
        """
        for sample in data_samples:
            if 'view_scores' not in sample:
                raise ValueError('ViewAccuracy needs the scores of single views: set model.cls_head.keep_views=True')
            label = int(sample['gt_label'])
            found = dict(view_top1=float((sample['view_scores'].argmax(-1) == label).float().mean()))
            if self.groups is not None:
                if len(self.groups) != len(sample['pred_score']):
                    raise ValueError(
                        f"ViewAccuracy: groups has {len(self.groups)} entries, the model {len(sample['pred_score'])} "
                        'classes')
                found['group_top1'] = float(self.groups[int(sample['pred_score'].argmax())] == self.groups[label])
            self.results.append(found)

    def compute_metrics(self, results: List[Dict[str, float]]) -> Dict[str, float]:
        """Means over the videos."""
        return {key: sum(r[key] for r in results) / len(results) for key in results[0]}
