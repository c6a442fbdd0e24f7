# SPDX-License-Identifier: Apache-2.0
"""Heads whose classes need mmaction2, which is imported only when one of them is built."""

from typing import Any

from torch import nn

from ..registry import MODELS


@MODELS.register_module(name='VideoSwinHead')
def build_video_swin_head(**kwargs: Any) -> nn.Module:
    """Build a :class:`mmpetl.models.video_heads.VideoSwinHead`; same arguments."""
    from .video_heads import VideoSwinHead
    return VideoSwinHead(**kwargs)


@MODELS.register_module(name='VideoMAEHead')
def build_videomae_head(**kwargs: Any) -> nn.Module:
    """Build a :class:`mmpetl.models.video_heads.VideoMAEHead`; same arguments."""
    from .video_heads import VideoMAEHead
    return VideoMAEHead(**kwargs)


@MODELS.register_module(name='VideoTextHead')
def build_video_text_head(**kwargs: Any) -> nn.Module:
    """Build a :class:`mmpetl.models.video_text_head.VideoTextHead`; same arguments."""
    from .video_text_head import VideoTextHead
    return VideoTextHead(**kwargs)
