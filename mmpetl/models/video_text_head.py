# SPDX-License-Identifier: Apache-2.0
"""A head for videos whose classes are texts: cosine of the clip's feature with the text features of the class names."""

import math
from typing import Any, List, Mapping, Optional

import torch
from mmaction.models.heads.base import BaseHead
from torch import Tensor, nn
from torch.nn import functional as F

from .clip_neck import CLIPProjection
from .text_features import load_text_features
from .video_heads import ViewScores


class VideoTextHead(ViewScores, BaseHead):
    """logits_c = scale * cos(f, t_c), with f the projected feature of a clip and t_c the text feature of class c.

    Over the frames of clips the backbone's feature is the mean of theirs; CLIP's projection is linear, so f is the mean
    of the frames' embeddings. Without training this is CLIP's zero-shot classifier; with adapters in the backbone the
    texts are a classifier that stays (Wu et al., "Revisiting Classifier", https://arxiv.org/abs/2207.01297) or, with
    ``train_text``, from which the classifier starts.

    Args:
        num_classes: Number of classes.
        in_channels: Width C of the feature.
        text_features: Text-feature file, see :mod:`mmpetl.models.text_features`. None: random rows, for counts.
        projection: Arguments of :class:`mmpetl.models.CLIPProjection` besides ``in_channels``; None: the feature is in
            the texts' space already.
        scale: Temperature; 100 is CLIP's.
        train_scale: Whether the temperature trains, from ``scale`` on, as its logarithm ``log_scale``: so the code of
            Wu et al. trains CLIP's ``logit_scale``. The classes' order does not depend on it, their probabilities do.
        train_text: Whether the rows train, from the text features on; else they belong to the configuration and not to
            the checkpoint, and the file is read whenever the head is built.
        pool_views: Average the unit features of a video's views before the cosine, not their scores after it.
        keep_views: Store the scores of all test views, see :class:`mmpetl.models.video_heads.ViewScores`.
        **kwargs: Other arguments of mmaction2's ``BaseHead``.

    Raises:
        FileNotFoundError: If there is no such file; the message says what makes it.
        ValueError: If the file does not fit, both ``pool_views`` and ``keep_views`` are asked for, or ``scale`` trains
            from a value that has no logarithm.
    """

    def __init__(self,
                 num_classes: int,
                 in_channels: int,
                 text_features: Optional[str],
                 projection: Optional[Mapping[str, Any]] = None,
                 scale: float = 100.,
                 train_scale: bool = False,
                 train_text: bool = False,
                 pool_views: bool = False,
                 keep_views: bool = False,
                 **kwargs: Any) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        if pool_views and keep_views:
            raise ValueError('VideoTextHead: with pool_views=True the views of a video have no scores of their own: '
                             'set keep_views=False')
        if train_scale and scale <= 0:
            raise ValueError(f'VideoTextHead: scale={scale:g} cannot train: it must be above 0')
        self.projection = None if projection is None else CLIPProjection(in_channels, **projection)
        width = in_channels if self.projection is None else self.projection.proj.shape[1]
        self.text_features, self.scale, self.train_text = text_features, float(scale), train_text
        self.pool_views, self.keep_views = pool_views, keep_views
        rows = F.normalize(torch.randn(num_classes, width), dim=-1)
        if text_features is not None:
            rows = load_text_features(text_features, num_classes, width).weight
        if train_text:
            self.text = nn.Parameter(rows.clone())
        else:
            self.register_buffer('text', rows, persistent=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale))) if train_scale else None

    def init_weights(self) -> None:
        """Read the projection, and set rows that train to the text features."""
        super().init_weights()
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, math.log(self.scale))
        if self.train_text and self.text_features is not None:
            with torch.no_grad():
                self.text.copy_(load_text_features(self.text_features, *self.text.shape).weight)

    def embed(self, x: Any) -> Tensor:
        """Feature (N, C), or in a tuple -> unit embeddings (N, E), in float32 at least."""
        x = x[-1] if isinstance(x, (tuple, list)) else x
        x = x if x.dtype is torch.float64 else x.float()
        return F.normalize(x if self.projection is None else self.projection((x, ))[0], dim=-1)

    def logits(self, f: Tensor) -> Tensor:
        """Embeddings f (N, E) -> logits (N, classes)."""
        scale = self.scale if self.log_scale is None else self.log_scale.exp()
        # Rows that stay are normed too: a cast of the model to another precision has changed their length.
        return scale * F.linear(f, F.normalize(self.text, dim=-1))

    def forward(self, x: Any, **kwargs: Any) -> Tensor:
        """Feature (N, C), or in a tuple -> logits (N, classes)."""
        # In half precision a hundred times a cosine would be off by tenths.
        kind = (x[-1] if isinstance(x, (tuple, list)) else x).device.type
        with torch.autocast(kind, enabled=False):
            return self.logits(self.embed(x))

    def predict(self, feats: Any, data_samples: List[Any], **kwargs: Any) -> List[Any]:
        """Features of all views (videos * views, C) -> the samples with their scores."""
        if not self.pool_views:
            return super().predict(feats, data_samples, **kwargs)
        with torch.autocast((feats[-1] if isinstance(feats, (tuple, list)) else feats).device.type, enabled=False):
            f = self.embed(feats).unflatten(0, (len(data_samples), -1)).mean(1)
            return self.predict_by_feat(self.logits(F.normalize(f, dim=-1)), data_samples)
