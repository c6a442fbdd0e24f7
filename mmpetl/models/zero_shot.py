# SPDX-License-Identifier: Apache-2.0
"""Classification by the similarity of image and text features, without training."""

from typing import Any, Optional, Tuple

from mmpretrain.models.heads import ClsHead
from torch import Tensor
from torch.nn import functional as F

from ..registry import MODELS
from .text_features import load_text_features


@MODELS.register_module()
class ZeroShotHead(ClsHead):
    """softmax(scale * cos(f, t_c)) over the classes c. Has no parameter.

    The text features belong to the configuration, not to the checkpoint: they are read when the head is built, so
    testing needs the backbone's weights only.

    Args:
        text_features: Text-feature file, see :mod:`mmpetl.models.text_features`.
        num_classes: Expected number of classes.
        scale: Temperature (100, as published, not the trained ``logit_scale``).
        **kwargs: Other arguments of :class:`mmpretrain.models.heads.ClsHead`.
    """

    def __init__(self,
                 text_features: str,
                 num_classes: Optional[int] = None,
                 scale: float = 100.,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        features = load_text_features(text_features, num_classes)
        self.register_buffer('weight', features.weight, persistent=False)
        self.num_classes = len(features.weight)
        self.scale = scale

    def pre_logits(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Features of all stages -> the last one (B, E), of unit length."""
        return F.normalize(feats[-1], dim=-1)

    def forward(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Features of all stages -> logits (B, C)."""
        return self.scale * F.linear(self.pre_logits(feats), self.weight)
