# SPDX-License-Identifier: Apache-2.0
"""Classification heads of V-PETL on Video Swin and of APT on VideoMAE, which keep the scores of every test view when
asked to."""

from typing import Any, Dict, List, Optional

import torch
from mmaction.models.heads import I3DHead, TimeSformerHead
from torch import Tensor

from ..sites import nearest

TEMPORAL_POOLS = ('pair', 'mean')


class ViewScores:
    """Mixin of mmaction2's heads: scores are float32, and ``keep_views=True`` stores the logits of all views beside
    their average.

    mmaction2's heads make arrays of their scores, which bfloat16 (mixed precision) does not allow. With ``keep_views``
    a test run's ``--dump`` file holds ``view_scores`` (views, classes) per video, in the order clip by clip and crop by
    crop.
    """

    keep_views: bool = False

    def loss_by_feat(self, cls_scores: Tensor, data_samples: List[Any]) -> Dict[str, Tensor]:
        """cls_scores (videos, classes) -> losses and accuracies."""
        return super().loss_by_feat(cls_scores.float(), data_samples)  # type: ignore[misc]

    def predict_by_feat(self, cls_scores: Tensor, data_samples: List[Any]) -> List[Any]:
        """cls_scores (videos * views, classes) -> the samples with ``pred_score`` (classes,), ``pred_label`` and
        ``view_scores``."""
        cls_scores = cls_scores.float()
        if self.keep_views:
            for sample, views in zip(data_samples, cls_scores.unflatten(0, (len(data_samples), -1))):
                sample.set_field(views.detach(), 'view_scores')
        return super().predict_by_feat(cls_scores, data_samples)  # type: ignore[misc]


def temporal_weights(length: int, pool: str) -> Tensor:
    """Weights (T,) of the temporal average, which sum to 1.

    'pair' averages neighbouring pairs of time steps first, as V-PETL's head does: (1, 2, ..., 2, 1) / (2 T - 2). 'mean'
    is uniform.
    """
    weights = torch.ones(length)
    if pool == 'pair' and length > 1:
        weights[1:-1] = 2.
    return weights / weights.sum()


class VideoSwinHead(ViewScores, I3DHead):
    """V-PETL's head: spatial mean, temporal average over pairs, one linear layer with bias (1025 * classes parameters
    for Swin-B).

    The published code pools pairs, applies a 1 x 1 x 1 convolution and averages; as that is linear, this is the same in
    one step.

    Args:
        num_classes: Number of classes.
        in_channels: Width C of the feature.
        temporal_pool: 'pair' (as published) or 'mean'.
        dropout_ratio: Dropout on the feature; 0 as published.
        init_std: Standard deviation of the initial weights; None is torch's default for a linear layer, as published.
        keep_views: Store the scores of all test views, see :class:`ViewScores`.
        **kwargs: Other arguments of mmaction2's ``I3DHead``; ``average_clips='score'`` averages logits, as published.

    Raises:
        ValueError: If ``temporal_pool`` is unknown.
    """

    def __init__(self, num_classes: int, in_channels: int, temporal_pool: str = 'pair', dropout_ratio: float = 0.,
                 init_std: Optional[float] = None, keep_views: bool = False, **kwargs: Any) -> None:
        if temporal_pool not in TEMPORAL_POOLS:
            raise ValueError(f'VideoSwinHead: unknown temporal_pool {temporal_pool!r}' +
                             nearest(temporal_pool, TEMPORAL_POOLS))
        super().__init__(num_classes, in_channels, dropout_ratio=dropout_ratio, init_std=init_std, **kwargs)
        self.temporal_pool, self.keep_views = temporal_pool, keep_views

    def init_weights(self) -> None:
        """Set the linear layer to its initial values."""
        if self.init_std is None:
            self.fc_cls.reset_parameters()
        else:
            super().init_weights()

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """x (N, C, T, H, W) -> logits (N, classes)."""
        n, c, t, h, w = x.shape
        x = x.mean((3, 4)) @ temporal_weights(t, self.temporal_pool).to(x)
        return self.fc_cls(x if self.dropout is None else self.dropout(x))


class VideoMAEHead(ViewScores, TimeSformerHead):
    """Linear head on VideoMAE's feature (mean over tokens, then norm, both in the backbone), with tiny initial weights.

    Args:
        num_classes: Number of classes.
        in_channels: Width C of the feature.
        init_scale: Factor of the initial weights, which are truncated normal with standard deviation 0.02.
        keep_views: Store the scores of all test views, see :class:`ViewScores`.
        **kwargs: Other arguments of mmaction2's ``TimeSformerHead``; ``average_clips='prob'`` averages probabilities,
            as published.
    """

    def __init__(self,
                 num_classes: int,
                 in_channels: int,
                 init_scale: float = 0.001,
                 keep_views: bool = False,
                 **kwargs: Any) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        self.init_scale, self.keep_views = init_scale, keep_views

    def forward(self, x: Any, **kwargs: Any) -> Tensor:
        """Feature (N, C) -> logits (N, classes). An image backbone over frames gives its feature in a tuple."""
        return super().forward(x[-1] if isinstance(x, (tuple, list)) else x, **kwargs)

    def init_weights(self) -> None:
        """Set the linear layer to its initial values."""
        super().init_weights()
        with torch.no_grad():
            self.fc_cls.weight.mul_(self.init_scale)
            self.fc_cls.bias.mul_(self.init_scale)
