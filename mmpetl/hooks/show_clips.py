# SPDX-License-Identifier: Apache-2.0
"""Pictures of tested videos, where one sample has several views."""

import math
import os
from typing import Any, Optional, Sequence

from einops import rearrange
from mmengine.hooks import Hook
from mmengine.visualization import Visualizer

from ..registry import HOOKS


@HOOKS.register_module()
class ShowClipsHook(Hook):
    """mmaction2's ``VisualizationHook`` for samples of the form (views, 3, T, H, W): the first view is drawn.

    Args:
        enable: Whether to draw at all.
        interval: Draw every n-th sample.
        show: Show the frames in a window.
        wait_time: Seconds a window stays.
        out_dir: Folder for the frames: one folder per video.
    """

    def __init__(self,
                 enable: bool = False,
                 interval: int = 1,
                 show: bool = False,
                 wait_time: float = 2.,
                 out_dir: Optional[str] = None,
                 **kwargs: Any) -> None:
        self.enable, self.interval, self.out_dir = enable, interval, out_dir
        self.options = dict(kwargs, show_frames=show, wait_time=wait_time)

    def after_test_iter(self,
                        runner: Any,
                        batch_idx: int,
                        data_batch: Any = None,
                        outputs: Optional[Sequence[Any]] = None) -> None:
        """Draw the samples of a batch whose turn it is."""
        if not self.enable or not outputs:
            return
        first = batch_idx * (getattr(runner.test_dataloader, 'batch_size', None) or len(outputs))
        turn = math.ceil(first / self.interval) * self.interval
        for number in range(turn, first + len(outputs), self.interval):
            clip, sample = data_batch['inputs'][number - first], outputs[number - first]
            while clip.dim() > 4:
                clip = clip[0]
            name = os.path.splitext(os.path.basename(str(sample.get('filename') or sample.get('frame_dir') or '')))[0]
            name = f'{name or "sample"}_{number}'
            Visualizer.get_current_instance().add_datasample(
                name,
                video=rearrange(clip, 'c t h w -> t h w c').cpu().numpy().astype('uint8'),
                data_sample=sample,
                step=0,
                out_path=os.path.join(self.out_dir, name) if self.out_dir else None,
                **self.options)
