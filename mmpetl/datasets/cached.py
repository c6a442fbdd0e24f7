# SPDX-License-Identifier: Apache-2.0
"""Keep decoded, resized uint8 images in memory, so that a deterministic pipeline runs once per image instead of once
per epoch.

Normalisation stays where it is cheap: mmpretrain's data preprocessor moves the uint8 batch to the device and normalises
there.
"""

import copy
import mmap
import os
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.dataset import BaseDataset, Compose, force_full_init
from mmengine.logging import print_log

from ..registry import DATASETS

#: Transforms that give the same image every time; the cache holds what comes out of the longest run of them.
DETERMINISTIC = ('LoadImage', 'LoadImageFromFile', 'Resize', 'ResizeEdge', 'CenterCrop')


def deterministic_prefix(transforms: Sequence[Any]) -> int:
    """Number of leading transforms that are deterministic (see :data:`DETERMINISTIC`)."""
    for count, transform in enumerate(transforms):
        if type(transform).__name__ not in DETERMINISTIC:
            return count
    return len(transforms)


def available_bytes() -> int:
    """Free memory of the machine, in bytes (Linux; elsewhere 0, which means unknown)."""
    try:
        return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, ValueError, OSError):
        return 0


class _Images:
    """N images of one shape in anonymous shared memory: forked loader workers fill and read the same pages.

    A slot's flag is set after its pixels, so a reader never sees half an image; two workers that fill a slot at once
    write the same bytes.
    """

    def __init__(self, count: int, shape: Tuple[int, ...]) -> None:
        size = int(np.prod(shape))
        # max: no memory of 0 bytes can be mapped
        self.pixels = np.frombuffer(mmap.mmap(-1, max(count * size, 1)), np.uint8, count * size).reshape(count, *shape)
        self.original = np.frombuffer(mmap.mmap(-1, max(count * 8, 1)), np.int32, count * 2).reshape(count, 2)
        self.filled = np.frombuffer(mmap.mmap(-1, max(count, 1)), np.uint8, count)


@DATASETS.register_module()
class CachedDataset:
    """Wrap a dataset and cache the images that the deterministic head of its pipeline makes.

    Later transforms (flips, packing) run every time on the cached image. Results are equal to the uncached ones; of the
    fields that the cached transforms add, ``img_shape`` and ``ori_shape`` are kept. Every image must have the same
    shape after these transforms.

    Args:
        dataset: Config of the dataset, or the dataset; its items must be dicts.
        max_gib: Upper bound of the cache in GiB; None is half of the free memory. A larger dataset is read without a
            cache, and the log says so.

    Raises:
        ValueError: If the pipeline begins with no deterministic transform, or images differ in shape.
    """

    def __init__(self, dataset: Any, max_gib: Optional[float] = None, lazy_init: bool = False) -> None:
        self.dataset: BaseDataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        transforms: List[Any] = list(self.dataset.pipeline.transforms)
        cut = deterministic_prefix(transforms)
        if cut == 0:
            raise ValueError(
                f'CachedDataset: the pipeline begins with {type(transforms[0]).__name__ if transforms else "nothing"}, '
                f'but only {", ".join(DETERMINISTIC)} can be cached')
        self._head, self._tail = Compose(transforms[:cut]), Compose(transforms[cut:])
        self._limit = max_gib * 2**30 if max_gib is not None else available_bytes() / 2
        self._images: Optional[_Images] = None
        self._decided = False
        if not lazy_init:
            self.full_init()

    def full_init(self) -> None:
        """Load the lists and decide, before loader workers are forked, whether the images fit."""
        self.dataset.full_init()
        if self._decided or len(self.dataset) == 0:
            return
        shape = self._head(copy.deepcopy(self.dataset.get_data_info(0)))['img'].shape
        need = len(self.dataset) * int(np.prod(shape))
        if need <= self._limit:
            self._images = _Images(len(self.dataset), shape)
        print_log(
            f'{type(self.dataset).__name__}: {"caching" if self._images else "NOT caching"} {len(self.dataset)} '
            f'images of {shape[0]}x{shape[1]} ({need / 2**30:.2f} GiB, limit {self._limit / 2**30:.2f} GiB)',
            logger='current')
        self._decided = True

    @property
    def _fully_initialized(self) -> bool:
        return self._decided

    @property
    def metainfo(self) -> dict:
        """Meta information of the wrapped dataset."""
        return self.dataset.metainfo

    @property
    def pipeline(self) -> Any:
        """Pipeline of the wrapped dataset."""
        return self.dataset.pipeline

    @force_full_init
    def __len__(self) -> int:
        return len(self.dataset)

    def get_data_info(self, idx: int) -> dict:
        """Annotation of one image."""
        return self.dataset.get_data_info(idx)

    def get_cat_ids(self, idx: int) -> List[int]:
        """Class ids of one image."""
        return self.dataset.get_cat_ids(idx)

    @force_full_init
    def __getitem__(self, idx: int) -> Any:
        if self._images is None:
            return self.dataset[idx]
        info: Dict[str, Any] = self.dataset.get_data_info(idx)
        slot = info['sample_idx']  # idx itself may be negative
        if not self._images.filled[slot]:
            self._fill(slot, copy.deepcopy(info))
        # A copy: later transforms may write into the image.
        image = self._images.pixels[slot].copy()
        info.update(img=image, img_shape=image.shape[:2], ori_shape=tuple(int(n) for n in self._images.original[slot]))
        return self._tail(info)

    def _fill(self, slot: int, info: Dict[str, Any]) -> None:
        result = self._head(info)
        image, want = result['img'], self._images.pixels.shape[1:]
        if image.shape != want or image.dtype != np.uint8:
            raise ValueError(
                f"CachedDataset: {info.get('img_path')} is {image.shape} {image.dtype} after the cached transforms, "
                f'the first image {want} uint8: add a resize or crop to one size at the head of the pipeline')
        self._images.pixels[slot] = image
        self._images.original[slot] = result['ori_shape']
        self._images.filled[slot] = 1

    def __getstate__(self) -> dict:
        # Shared memory cannot be pickled: a spawned worker begins with an empty cache of its own.
        state = dict(self.__dict__)
        if self._images is not None:
            state['_images'] = self._images.pixels.shape
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if isinstance(self._images, tuple):
            self._images = _Images(self._images[0], self._images[1:])
