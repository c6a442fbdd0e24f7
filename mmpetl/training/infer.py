# SPDX-License-Identifier: Apache-2.0
"""Predictions of a trained adapter on files and arrays, through the test pipeline of its config."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Optional

import mmcv.transforms
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import FUNCTIONS, TRANSFORMS
from mmengine.utils import ProgressBar
from torch import nn

from ..clean_errors import one_line
from ..datasets.loading import split_member
from ..datasets.video_io import spread
from ..weights.reading import as_path
from .build import build_model, load_trained, read_config

ORDERS = ('rgb', 'bgr')
#: Transforms that open a video; an array is open already.
_OPENS = ('VideoInit', 'DecordInit', 'PyAVInit', 'OpenCVInit', 'PIMSInit')
#: Transforms that decode the frames which the sampler chose.
_DECODES = ('VideoDecode', 'DecordDecode', 'PyAVDecode', 'OpenCVDecode', 'OpenCVFrames', 'PIMSDecode')


class Predictor:
    """A loaded model with the test pipeline of its config.

    Args:
        config: Config file with which the adapter was trained.
        adapter: Adapter file, or checkpoint of the training run.
        device: For example 'cpu' or 'cuda:0'; None chooses.
        channel_order: Order of the channels of arrays, 'rgb' or 'bgr'. Files and pictures of Pillow know theirs.
        cfg_options: Overrides of the config, ``{'model.backbone.petl.0.rank': 4}``.
        force: See :func:`mmpetl.load_adapter`.

    Raises:
        FileNotFoundError: If config or adapter does not exist.
        ValueError: If adapter and config do not belong together, or the config has no test pipeline.
    """

    def __init__(self, config: str, adapter: str, device: Optional[str] = None, channel_order: str = 'rgb',
                 cfg_options: Optional[Mapping[str, Any]] = None, force: bool = False) -> None:
        if channel_order not in ORDERS:
            raise ValueError(f"channel_order={channel_order!r} must be 'rgb' or 'bgr'")
        self.channel_order = channel_order
        where = _device(device)
        config, adapter = as_path(config, 'config'), as_path(adapter, 'adapter')
        self.cfg = read_config(config, cfg_options)
        self.dataset = test_dataset(self.cfg, config)
        self.model = build_model(self.cfg)
        if hasattr(self.model, 'decode_head'):
            raise ValueError(f'{config}: the model labels pixels, and this predicts classes of whole pictures and '
                             'videos: python tools/test.py CONFIG ADAPTER --show-dir FOLDER draws what it predicts')
        header = load_trained(self.model, adapter, self.cfg, force)
        self.model.to(where).eval()
        #: Names of the classes in label order, or None.
        self.classes = (header or {}).get('classes')
        #: How many classes there are; None where the head does not say.
        self.num_classes: Optional[int] = getattr(_head(self.model), 'num_classes', None)
        self.video = self.cfg.get('default_scope') == 'mmaction'
        self.transforms = [TRANSFORMS.build(t) for t in self.dataset['pipeline']]
        self.collate = _collate(self.cfg)

    def __call__(self, inputs: Any, batch_size: int = 1,
                 unreadable: Optional[Callable[[Any, Exception], None]] = None) -> list[dict[str, Any]]:
        """See :func:`infer`.

        Args:
            inputs: One input or a list.
            batch_size: Inputs that are computed together.
            unreadable: Called with an input that cannot be read and its error; the input has no result then, unless
                the function raises. None raises the error.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f'batch_size={batch_size!r} must be a whole number from 1')
        inputs = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        checked: list[Any] = []
        for number, one in enumerate(inputs):
            with _told(one, unreadable):
                self._check(one, number)
                checked.append(one)
        results: list[dict[str, Any]] = []
        bar = ProgressBar(len(checked), file=sys.stderr) if len(checked) > 1 and sys.stderr.isatty() else None
        for batch in _chunks(checked, batch_size):
            ready: list[Any] = []
            for one in batch:
                with _told(one, unreadable):
                    ready.append((one, self._prepare(one)))
            samples = self._forward([item for _, item in ready]) if ready else []
            results += [self._result(one, sample) for (one, _), sample in zip(ready, samples)]
            if bar is not None:
                bar.update(len(batch))
        return results

    @torch.no_grad()
    def _forward(self, items: list[Any]) -> Sequence[Any]:
        half = (self.cfg.get('test_cfg') or {}).get('fp16')
        kind = next(self.model.parameters()).device.type
        with torch.autocast(kind) if half else nullcontext():
            return self.model.test_step(self.collate(items))

    def _check(self, one: Any, number: int) -> None:
        """Refuse an input before anything is computed."""
        if isinstance(one, (str, os.PathLike)):
            path = os.path.expanduser(os.fspath(one))
            path = split_member(path)[0]
            if '://' not in path and not os.path.isfile(path):
                what = 'is a folder: give the files in it' if os.path.isdir(path) else (
                    'no file on a disk; give the path of a picture or video' if os.path.exists(path) else
                    'no such file; give the path of a picture or video')
                raise FileNotFoundError(f'{path}: {what}')
        elif isinstance(one, np.ndarray):
            wanted, form = (4, '(T, H, W, 3)') if self.video else (3, '(H, W, 3)')
            if one.dtype != np.uint8 or one.ndim != wanted or one.shape[-1] != 3 or not one.size:
                raise ValueError(f'input {number} is an array of {one.dtype} and shape {one.shape}; give uint8, 0 to '
                                 f'255, of shape {form}, channels in the order channel_order={self.channel_order!r}')
        elif self.video or not _is_picture(one):
            raise ValueError(f'input {number} is a {type(one).__name__}; give a path or an array')

    def _prepare(self, one: Any) -> Any:
        """Run the test pipeline on one input."""
        array = None if isinstance(one, (str, os.PathLike)) else self._array(one)
        results: Any
        if array is None:
            path = os.path.expanduser(os.fspath(one))
            results = dict(filename=path) if self.video else dict(img_path=path)
        elif self.video:
            results = dict(filename='array', array=array, total_frames=len(array))
        else:
            results = dict(img=array, img_shape=array.shape[:2], ori_shape=array.shape[:2])
        if self.video:
            results.update(modality=self.dataset.get('modality', 'RGB'), start_index=self.dataset.get('start_index', 0))
        for transform in self.transforms:
            try:
                results = transform(results) if array is None else _on_array(transform, results)
            except Exception as error:
                # so libraries say: no picture
                if not isinstance(error, (AssertionError, UnicodeDecodeError, SyntaxError)) and type(
                        error).__module__ != 'cv2':
                    raise
                said = ' '.join(str(error).split()) or type(error).__name__
                raise ValueError(f'{one if array is None else "the array"}: {type(transform).__name__} cannot read it '
                                 f'({said}): give a whole picture or video') from error
            if results is None:
                raise ValueError(f'{one if array is None else "the array"}: {type(transform).__name__} left nothing')
        return results

    def _array(self, one: Any) -> np.ndarray:
        """An array in the order in which the pipeline's own loader leaves it: images BGR, frames of videos RGB."""
        if not isinstance(one, np.ndarray):
            from PIL import ImageOps
            one, order = np.asarray(ImageOps.exif_transpose(one).convert('RGB')), 'rgb'
        else:
            order = self.channel_order
        wanted = 'rgb' if self.video else 'bgr'
        array = one if order == wanted else one[..., ::-1]
        return np.array(array, order='C')  # a copy, because transforms may work in place

    def _result(self, one: Any, sample: Any) -> dict[str, Any]:
        scores = sample.pred_score.float().cpu()
        found: dict[str, Any] = dict(
            input=os.fspath(one) if isinstance(one, (str, os.PathLike)) else None,
            pred_scores=scores.numpy(),
            pred_label=int(scores.argmax()),
            pred_score=float(scores.max()))
        names = self.classes if self.classes and len(self.classes) == len(scores) else None
        if names:
            found['pred_class'] = names[found['pred_label']]
        if getattr(_head(self.model), 'multi_label', False):
            found['pred_labels'] = [int(label) for label in sample.pred_label]
            if names:
                found['pred_classes'] = [names[label] for label in found['pred_labels']]
        return found


def infer(config: str, adapter: str, inputs: Any, device: Optional[str] = None, batch_size: int = 1,
          channel_order: str = 'rgb', cfg_options: Optional[Mapping[str, Any]] = None,
          force: bool = False, skip_unreadable: bool = False) -> list[dict[str, Any]]:
    """Predictions of an adapter: the model, the test pipeline and the scores of ``tools/test.py``, without labels.

    Args:
        config: Config file with which the adapter was trained.
        adapter: Adapter file, or checkpoint of the training run; base and adapter are loaded and checked.
        inputs: One input or a list: paths of images or videos (``archive.zip@member`` too), uint8 arrays (H, W, 3) of
            images or (T, H, W, 3) of videos, Pillow pictures.
        device: For example 'cpu' or 'cuda:0'; None chooses.
        batch_size: Inputs that are computed together.
        channel_order: Order of the channels of arrays: 'rgb', as Pillow, PyAV and decord give them, or 'bgr', as
            OpenCV does.
        cfg_options: Overrides of the config, ``{'model.backbone.petl.0.rank': 4}``.
        force: See :func:`mmpetl.load_adapter`.
        skip_unreadable: Leave out files that are there and cannot be read, each with a line in the log, rather than
            end; ``input`` of the results says which are left.

    Returns:
        One dict per input that was read: ``input`` (the path, None of an array), ``pred_scores`` (float32 array
        (classes,)), ``pred_label``, ``pred_score``, and ``pred_class`` where the adapter knows the names of its
        classes. A head for several labels per image adds ``pred_labels`` and ``pred_classes``.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If adapter and config do not belong together, an input cannot be read and must not be left out, or
            none can.
    """
    if not isinstance(skip_unreadable, bool):
        raise ValueError(f'skip_unreadable={skip_unreadable!r:.80} must be True or False')
    wrong: list[str] = []

    def unreadable(one: Any, error: Exception) -> None:
        if not skip_unreadable or isinstance(error, FileNotFoundError) or not isinstance(one, (str, os.PathLike)):
            raise error  # a name mistyped, or an array that is none
        wrong.append(f'{os.fspath(one)}: {one_line(error).removeprefix(f"{os.fspath(one)}: ")}')
        print_log(f'unreadable, left out: {wrong[-1]}', 'current', logging.WARNING)

    results = Predictor(config, adapter, device, channel_order, cfg_options, force)(inputs, batch_size, unreadable)
    if wrong and not results:
        raise ValueError(f'none of the {len(wrong)} files can be read: give others, for {wrong[0]}')
    return results


def test_dataset(cfg: Config, source: str) -> Mapping[str, Any]:
    """The dataset config in ``cfg`` that has the test pipeline.

    Raises:
        ValueError: If there is none.
    """
    dataset: Any = (cfg.get('test_dataloader') or {}).get('dataset')
    while isinstance(dataset, Mapping) and 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    if not isinstance(dataset, Mapping) or not dataset.get('pipeline'):
        raise ValueError(f'{source} has no test_dataloader.dataset.pipeline, which says how inputs are prepared')
    return dataset


def _collate(cfg: Config) -> Any:
    """What puts items into a batch in ``tools/test.py``."""
    named = cfg.test_dataloader.get('collate_fn')
    kind = named.get('type') if isinstance(named, Mapping) else named
    if kind is None:
        return default_collate if cfg.get('default_scope') == 'mmpretrain' else pseudo_collate
    return FUNCTIONS.get(kind) if isinstance(kind, str) else kind


def _on_array(transform: Any, results: Any) -> Any:
    """One transform of the pipeline, on an input that is already decoded."""
    name = type(transform).__name__
    if isinstance(transform, mmcv.transforms.LoadImageFromFile) or name in _OPENS:
        return results
    if name not in _DECODES:
        return transform(results)
    wanted = np.asarray(results['frame_inds']).reshape(-1)
    results['imgs'] = spread(list(results['array']), wanted)
    results['img_shape'] = results['original_shape'] = results['imgs'][0].shape[:2]
    return results


def _device(name: Optional[str]) -> str:
    """A device that is there.

    Raises:
        ValueError: If it is none, or this machine lacks it.
    """
    if name is None:
        return get_device()
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device={name!r:.80} cannot be used ({str(error).splitlines()[0]:.100}): give 'cpu', or "
                         "'cuda:0' on a machine with a GPU") from error
    return name


def _is_picture(one: Any) -> bool:
    from PIL import Image
    return isinstance(one, Image.Image)


def _head(model: nn.Module) -> Any:
    return getattr(model, 'head', None) or getattr(model, 'cls_head', None)


@contextmanager
def _told(one: Any, unreadable: Optional[Callable[[Any, Exception], None]]) -> Iterator[None]:
    """Hand an error within the context, and the input that it is about, to ``unreadable``, if there is one."""
    try:
        yield
    except Exception as error:
        if unreadable is None:
            raise
        unreadable(one, error)


def _chunks(inputs: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(inputs), size):
        yield inputs[start:start + size]
