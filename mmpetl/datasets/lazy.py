# SPDX-License-Identifier: Apache-2.0
"""Data sets whose classes need mmaction2, which is imported only when one of them is built."""

from typing import Any

from torch.utils.data import Dataset

from ..registry import DATASETS


@DATASETS.register_module(name='VideoListDataset')
def build_video_list(**kwargs: Any) -> Dataset:
    """Build a :class:`mmpetl.datasets.video.VideoListDataset`; same arguments."""
    from .video import VideoListDataset
    return VideoListDataset(**kwargs)
