# SPDX-License-Identifier: Apache-2.0
"""Frame sampling and test views of VideoMAE, APT and V-PETL that mmaction2 lacks.

V-PETL's training clips and the crops, flips, erasing and blending of both families are mmaction2's own transforms.
"""

from typing import Any, Dict, Tuple

import numpy as np
from mmcv.transforms import BaseTransform

from ..registry import TRANSFORMS
from ..sites import nearest, positive


def dense_clip(total: int, clip_len: int, interval: int) -> np.ndarray:
    """A random clip of VideoMAE's dense sampling, (clip_len,).

    A window of ``clip_len * interval`` frames ends at a random frame; the indices are spread over it with linspace, so
    their step is 64/15 and not 4 for 16 frames at interval 4. A video no longer than the window is spread over its
    whole length with ``total // interval`` indices, and its last frame is repeated.
    """
    span = clip_len * interval
    if total > span:
        end = np.random.randint(span, total)
        return np.linspace(end - span, end, num=clip_len).clip(end - span, end - 1).astype(np.int64)
    index = np.linspace(0, total, num=total // interval)
    index = np.concatenate([index, np.full(clip_len - len(index), total)])
    return index.clip(0, total - 1).astype(np.int64)


def dense_views(total: int, clip_len: int, interval: int, num_clips: int) -> np.ndarray:
    """Evenly spaced clips over every ``interval``-th frame, (num_clips, clip_len); the middle one where one is
    wanted."""
    frames = np.arange(0, total, interval)
    frames = np.concatenate([frames, np.full(max(clip_len - len(frames), 0), frames[-1])])
    last = len(frames) - clip_len
    starts = [last // 2] if num_clips == 1 else [int(k * last / (num_clips - 1)) for k in range(num_clips)]
    return np.stack([frames[start:start + clip_len] for start in starts])


def uniform_clip(total: int, clip_len: int) -> np.ndarray:
    """One random frame of each of ``clip_len`` equal segments, (clip_len,).

    The segments are ``total // clip_len`` frames long, so up to ``clip_len - 1`` frames at the end are never seen, as
    published. A video with fewer frames than segments is spread over the clip, each frame as often as the others, give
    or take one; the published code takes its first frame ``clip_len`` times.
    """
    length = total // clip_len
    if length == 0:
        return np.arange(clip_len) * total // clip_len
    return np.arange(clip_len) * length + np.random.randint(length, size=clip_len)


def uniform_views(total: int, clip_len: int, num_clips: int) -> np.ndarray:
    """(num_clips, clip_len): view 0 takes the starts of ``clip_len`` equal segments, view 1 their centres; one view is
    the centres."""
    tick = total / clip_len
    at = sorted([int(j * tick) for j in range(clip_len)] + [int(j * tick + tick / 2) for j in range(clip_len)])
    views = np.array(at, dtype=np.int64).reshape(clip_len, 2).T
    return views if num_clips == 2 else views[1:]


@TRANSFORMS.register_module()
class VideoMAESampleFrames(BaseTransform):
    """Frame sampling of VideoMAE and APT; with ``mode='dense'`` also V-PETL's test clips.

    It draws from ``numpy.random`` in the order of the published code. What differs: validation takes the middle of the
    video where the published code takes a random clip.

    Args:
        clip_len: Frames per clip.
        frame_interval: Stride of dense sampling, in frames.
        num_clips: Clips per video in test mode: any number of dense ones, 1 or 2 uniform ones.
        mode: 'dense' (Kinetics, UCF101, HMDB51) or 'uniform' (SSv2: one frame of each of ``clip_len`` segments).
        test_mode: Deterministic clips.

    Raises:
        ValueError: If an option has an unknown value.
    """

    def __init__(self,
                 clip_len: int = 16,
                 frame_interval: int = 4,
                 num_clips: int = 1,
                 mode: str = 'dense',
                 test_mode: bool = False) -> None:
        owner = type(self).__name__
        if mode not in ('dense', 'uniform'):
            raise ValueError(f'{owner}: unknown mode {mode!r}' + nearest(mode, ['dense', 'uniform']))
        self.clip_len = positive(clip_len, 'clip_len', owner)
        self.frame_interval = positive(frame_interval, 'frame_interval', owner)
        self.num_clips = positive(num_clips, 'num_clips', owner)
        if not test_mode and num_clips != 1:
            raise ValueError(f'{owner}: training takes one clip per video; num_clips={num_clips} needs test_mode=True')
        if mode == 'uniform' and num_clips > 2:
            raise ValueError(
                f'{owner}: uniform sampling has two views (starts and centres of the segments), got '
                f'num_clips={num_clips}'
            )
        self.mode = mode
        self.test_mode = test_mode

    def sample(self, total: int) -> np.ndarray:
        """Frame indices (num_clips, clip_len) for a video of ``total`` frames."""
        if self.mode == 'dense':
            if self.test_mode:
                return dense_views(total, self.clip_len, self.frame_interval, self.num_clips)
            return dense_clip(total, self.clip_len, self.frame_interval)[None]
        if self.test_mode:
            return uniform_views(total, self.clip_len, self.num_clips)
        return uniform_clip(total, self.clip_len)[None]

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        """``total_frames`` -> adds ``frame_inds`` (num_clips * clip_len,), ``clip_len``, ``frame_interval``,
        ``num_clips``."""
        results['frame_inds'] = self.sample(int(results['total_frames'])).reshape(-1) + results.get('start_index', 0)
        results.update(clip_len=self.clip_len, frame_interval=self.frame_interval, num_clips=self.num_clips)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(clip_len={self.clip_len}, frame_interval={self.frame_interval}, '
            f'num_clips={self.num_clips}, '
            f'mode={self.mode!r}, test_mode={self.test_mode})')


@TRANSFORMS.register_module()
class ShortSideResize(BaseTransform):
    """Bilinear resize to a short side; the long side is rounded down, as both papers do (mmaction2's ``Resize`` rounds
    it to nearest).

    Args:
        size: Length of the short side, in pixels.
    """

    def __init__(self, size: int = 224) -> None:
        self.size = positive(size, 'size', type(self).__name__)

    def target(self, height: int, width: int) -> Tuple[int, int]:
        """(height, width) after the resize."""
        if height <= width:
            return self.size, width * self.size // height
        return height * self.size // width, self.size

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """One frame, (H, W, 3)."""
        import cv2
        height, width = self.target(*frame.shape[:2])
        if frame.shape[:2] == (height, width):
            return frame
        return cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        """Resizes ``imgs``, sets ``img_shape``; the frames of full size are let go one by one."""
        frames = results['imgs']
        for i, frame in enumerate(frames):
            frames[i] = self.apply(frame)
        results['img_shape'] = frames[0].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size})'


@TRANSFORMS.register_module()
class ViewCrops(BaseTransform):
    """Crops at equal steps along the long side: all crops of a clip one after the other, clips and crops in the
    published order.

    Crop c of n starts at ``int(c * (long - size) / (n - 1))``; mmaction2's ``ThreeCrop`` is up to one pixel off and in
    another order. A single crop is the middle one.

    Args:
        crop_size: Height and width of the crops, in pixels.
        num_crops: Crops per clip.
    """

    def __init__(self, crop_size: int = 224, num_crops: int = 3) -> None:
        self.crop_size = positive(crop_size, 'crop_size', type(self).__name__)
        self.num_crops = positive(num_crops, 'num_crops', type(self).__name__)

    def starts(self, long: int) -> Tuple[int, ...]:
        """Starts of the crops along a side of ``long`` pixels."""
        room = long - self.crop_size
        if self.num_crops == 1:
            return (int(round(room / 2.)), )
        return tuple(int(c * room / (self.num_crops - 1)) for c in range(self.num_crops))

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        """``imgs`` of num_clips * clip_len frames -> num_clips * num_crops * clip_len frames; ``num_clips`` counts the
        views.

        Raises:
            ValueError: If the frames are smaller than the crops.
        """
        frames, size = results['imgs'], self.crop_size
        height, width = frames[0].shape[:2]
        if min(height, width) < size:
            raise ValueError(f'ViewCrops: frames of {height} x {width} pixels are smaller than the crops of {size}; '
                             f'put ShortSideResize(size={size}) before it')
        clip_len = len(frames) // results.get('num_clips', 1)
        top, left = (height - size) // 2, (width - size) // 2
        views = []
        for first in range(0, len(frames), clip_len):
            for start in self.starts(max(height, width)):
                y, x = (start, left) if height > width else (top, start)
                views += [frame[y:y + size, x:x + size] for frame in frames[first:first + clip_len]]
        results['imgs'] = views
        results['img_shape'] = (size, size)
        results['num_clips'] = len(views) // clip_len
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(crop_size={self.crop_size}, num_crops={self.num_crops})'
