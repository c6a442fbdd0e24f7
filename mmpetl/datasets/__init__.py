# SPDX-License-Identifier: Apache-2.0
"""Data sets, transforms and samplers that the upstream libraries lack. Importing this package registers them all."""

from .cached import CachedDataset
from .clip_augment import ClipRandAugment
from .elevater import Elevater
from .fgvc import FGVC
from .lazy import build_video_list
from .list_dataset import ListDataset
from .loading import LoadImage
from .video_io import VideoDecode, VideoInit
from .video_transforms import ShortSideResize, VideoMAESampleFrames, ViewCrops
from .vtab import VTAB1k

__all__ = [
    'CachedDataset', 'ClipRandAugment', 'Elevater', 'FGVC', 'ListDataset', 'LoadImage', 'ShortSideResize', 'VTAB1k',
    'VideoDecode', 'VideoInit', 'VideoMAESampleFrames', 'ViewCrops', 'build_video_list'
]
