# SPDX-License-Identifier: Apache-2.0
"""Heads and necks that the papers use and upstream lacks. Importing this package registers them."""

from .clip_neck import CLIPProjection
from .feature_head import FeatureHead
from .lazy import build_video_swin_head, build_video_text_head, build_videomae_head
from .text_features import TextFeatures, class_weights, load_text_features, save_text_features
from .zero_shot import ZeroShotHead

__all__ = [
    'CLIPProjection', 'FeatureHead', 'TextFeatures', 'ZeroShotHead', 'build_video_swin_head', 'build_video_text_head',
    'build_videomae_head', 'class_weights', 'load_text_features', 'save_text_features'
]
