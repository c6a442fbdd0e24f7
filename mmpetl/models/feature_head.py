# SPDX-License-Identifier: Apache-2.0
"""The linear head of the CLIP benchmarks: BatchNorm without parameters on the feature, then a linear layer, perhaps set
from text."""

from typing import Any, List, Optional, Tuple

import torch
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn import functional as F

from ..registry import MODELS
from .text_features import load_text_features


@MODELS.register_module()
class FeatureHead(LinearClsHead):
    """mmpretrain's ``LinearClsHead`` with the ELEVATER benchmark's options, each off by default.

    logits = scale * (W f + b) with f the feature after the optional steps below.

    Args:
        num_classes: Number of classes C.
        in_channels: Width of the feature E.
        feature_bn: Put ``BatchNorm1d(affine=False)`` before the linear layer: no parameters, running statistics only.
        normalize: Scale the feature to unit length (after the BatchNorm).
        scale: Constant factor of the logits (100 is CLIP's temperature).
        text_features: Text-feature file that sets the weight; the bias becomes 0. See
            :mod:`mmpetl.models.text_features`.
        multi_label: Scores are sigmoids instead of a softmax; give ``loss`` a ``use_sigmoid=True`` loss.
        **kwargs: Other arguments of :class:`mmpretrain.models.heads.LinearClsHead`.

    Source: ELEVATER toolkit (arXiv 2204.08790). Where it takes the softmax over classes even of a multi-label task,
        this head takes the sigmoid that its loss trains.
    """

    def __init__(self,
                 num_classes: int,
                 in_channels: int,
                 feature_bn: bool = False,
                 normalize: bool = False,
                 scale: float = 1.,
                 text_features: Optional[str] = None,
                 multi_label: bool = False,
                 **kwargs: Any) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, **kwargs)
        self.bn = nn.BatchNorm1d(in_channels, affine=False) if feature_bn else nn.Identity()
        self.normalize = normalize
        self.scale = scale
        self.text_features = text_features
        self.multi_label = multi_label
        if text_features is not None:
            # a wrong file stops here, not after the model is built
            load_text_features(text_features, num_classes, in_channels)

    def init_weights(self) -> None:
        """Initialise as configured, then set the weight from text where a file is given."""
        super().init_weights()
        if self.text_features is not None:
            features = load_text_features(self.text_features, self.num_classes, self.in_channels)
            with torch.no_grad():
                self.fc.weight.copy_(features.weight)
                self.fc.bias.zero_()

    def pre_logits(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Features of all stages -> the last one (B, E), after BatchNorm and normalisation."""
        x = super().pre_logits(feats)
        # The variance of a single image is not defined: an epoch's last batch may hold one, and is then normalised as
        # when testing.
        x = self.bn(x) if len(x) > 1 or not isinstance(self.bn, nn.BatchNorm1d) else self._with_running_statistics(x)
        return F.normalize(x, dim=-1) if self.normalize else x

    def _with_running_statistics(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.bn.running_mean, self.bn.running_var, eps=self.bn.eps)

    def forward(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Features of all stages -> logits (B, C)."""
        return self.scale * self.fc(self.pre_logits(feats))

    def _get_predictions(self, cls_score: Tensor, data_samples: Optional[List[DataSample]]) -> List[DataSample]:
        if not self.multi_label:
            return super()._get_predictions(cls_score, data_samples)
        scores = cls_score.sigmoid()
        samples = data_samples if data_samples is not None else [DataSample() for _ in scores]
        for sample, score in zip(samples, scores):
            sample.set_pred_score(score).set_pred_label((score >= 0.5).nonzero()[:, 0])
        return samples
