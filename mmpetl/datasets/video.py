# SPDX-License-Identifier: Apache-2.0
"""Videos from list files, with the unreadable ones named before training starts."""

import copy
import logging
import os
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from mmaction.datasets import VideoDataset
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from torch.utils.data import get_worker_info

from ..sites import nearest, positive
from .folders import VIDEOS, class_names, files_below, find_samples
from .how_to_get import and_get
from .list_files import read_names
from .lists import below
from .video_files.errors import VideoError
from .video_io import VideoDecode, VideoInit
from .video_lists import read_video_list
from .video_probe import LEVELS, Probe, check_videos
from .video_transforms import ShortSideResize

#: Loader workers whose skipped videos are counted separately: adding to one number at once would lose some.
SLOTS = 256


class VideoListDataset(VideoDataset):
    """mmaction2's ``VideoDataset`` for the papers' lists, and for class folders.

    Lists hold a path and a label a line, separated by a blank or a comma
    (:func:`mmpetl.datasets.video_lists.read_video_list`). Without ``ann_file`` the folder holds one folder per class,
    as in :class:`mmpetl.datasets.ListDataset`.

    Args:
        ann_file: The list; '' for class folders.
        pipeline: Transforms; they open videos by ``mmpetl.VideoInit`` and decode them by ``mmpetl.VideoDecode``.
        data_prefix: ``dict(video=folder)``, or the folder, that relative paths of the list start from.
        num_classes: Number of classes, to check the labels.
        delimiter: ',', ' ' or 'auto'.
        classes: Class names; or a file with one name a line, or a folder of class folders, relative to ``data_root``.
            Labels may be names then.
        with_label: False for videos without labels, for prediction: lines are paths, a folder is searched through.
        first_label: 1 for lists whose labels start at 1.
        check: What is tried of every video before the run: 'none', 'exists' (there and not empty), 'open' (container
            and first frames decode; files that did are remembered) or 'decode' (all frames decode). With several
            processes the first one checks for all.
        check_timeout: Seconds that one video may take.
        check_workers: Processes that check; None: one a core, at most 8.
        on_error: What happens to unreadable videos: 'stop' ends the run naming them, 'skip' leaves out those that the
            check found, and in training draws another video for one that fails later; both are counted in the log. In
            testing a video that fails later always ends the run, as leaving it out would change the score.
        num_repeats: Repeated augmentation: every video is sampled and decoded once, and the transforms after that run
            this often (1: once). A batch then holds ``num_repeats * batch_size`` clips; items are lists, and the loader
            needs ``collate_fn=dict(type='repeat_pseudo_collate')``. None: items are single clips for any loader.
        test_mode: See :class:`mmengine.dataset.BaseDataset`.
        **kwargs: Other arguments of mmaction2's ``VideoDataset``.

    Raises:
        ValueError: If an option is unknown, a line of the list is wrong, or (with ``on_error='stop'``) a video cannot
            be read.
    """

    def __init__(self,
                 ann_file: str = '',
                 pipeline: Sequence[Union[dict, Callable]] = (),
                 data_prefix: Union[str, Mapping[str, str]] = dict(video=''),
                 num_classes: Optional[int] = None,
                 delimiter: str = 'auto',
                 classes: Union[str, Sequence[str], None] = None,
                 with_label: bool = True,
                 first_label: int = 0,
                 check: str = 'open',
                 check_timeout: float = 30.,
                 check_workers: Optional[int] = None,
                 on_error: str = 'stop',
                 num_repeats: Optional[int] = None,
                 test_mode: bool = False,
                 **kwargs: Any) -> None:
        owner = type(self).__name__
        if check not in ('none', *LEVELS):
            raise ValueError(f'{owner}: unknown check {check!r}' + nearest(check, ['none', *LEVELS]))
        if on_error not in ('skip', 'stop'):
            raise ValueError(f'{owner}: unknown on_error {on_error!r}' + nearest(on_error, ['skip', 'stop']))
        self.check, self.on_error = check, on_error
        self.check_timeout, self.check_workers = check_timeout, check_workers
        self.num_repeats = None if num_repeats is None else positive(num_repeats, 'num_repeats', owner)
        if kwargs.get('multi_class'):
            raise ValueError(f'{owner}: multi_class=True, but a line of its lists has one label: several labels a '
                             "video are read by mmaction2's VideoDataset")
        if test_mode and (num_repeats or 1) > 1:
            raise ValueError(f'{owner}: num_repeats={num_repeats} is repeated augmentation, which testing has not')
        #: Videos skipped while loading, one count per loader worker, in memory that the workers share.
        self._skipped = torch.zeros(SLOTS, dtype=torch.int64).share_memory_()
        if kwargs.get('data_root'):
            kwargs['data_root'] = os.path.expanduser(kwargs['data_root'])
        if isinstance(data_prefix, str):
            data_prefix = dict(video=data_prefix)
        prefix = {key: os.path.expanduser(folder) for key, folder in data_prefix.items()}
        if not (ann_file or kwargs.get('data_root') or prefix.get('video')):
            raise ValueError(f'{owner}: set ann_file to a list, or data_root to a folder of class folders')
        if first_label not in (0, 1):
            raise ValueError(f'{owner}: first_label={first_label!r} is neither 0 nor 1: give one of them')
        self.with_label, self.first_label = with_label, first_label
        if classes is not None:
            kwargs['metainfo'] = {**(kwargs.get('metainfo') or {}), 'classes': _names(classes, kwargs.get('data_root'))}
        super().__init__(
            os.path.expanduser(ann_file),
            list(pipeline),
            data_prefix=prefix,
            num_classes=num_classes,
            delimiter=delimiter,
            test_mode=test_mode,
            **kwargs)
        _resize_as_decoded(self.pipeline.transforms)

    def load_data_list(self) -> List[Dict[str, Any]]:
        """One dict with ``filename`` and ``label`` per line of the list, or per file of the class folders."""
        folder, names = self.data_prefix.get('video') or '', self._metainfo.get('classes')
        if not self.ann_file:
            found = self._in_folders(folder, names)
        else:
            found = [(below(folder, entry.path, self.ann_file, whole=True), entry.label)
                     for entry in read_video_list(self.ann_file, self.num_classes, self.delimiter, names,
                                                  self.with_label, self.first_label)]
        return [dict(filename=path, label=label) if self.with_label else dict(filename=path) for path, label in found]

    def _in_folders(self, folder: str, names: Optional[Sequence[str]]) -> List[Tuple[str, int]]:
        """Files and labels of class folders, whose names become the classes; labels are -1 where there are none."""
        if not self.with_label:
            files = list(files_below(folder, VIDEOS))
            if not files:
                raise ValueError(f'{folder} holds no file with one of the suffixes {", ".join(VIDEOS)}')
            return [(os.path.join(folder, name), -1) for name in files]
        if names is None:
            names = self._metainfo['classes'] = class_names(folder)
        if self.num_classes is not None and self.num_classes != len(names):
            raise ValueError(f'{folder} has {len(names)} classes, and num_classes={self.num_classes}: set it to '
                             f'{len(names)}, here and in model.cls_head, or leave it out')
        by_class = find_samples(folder, names, VIDEOS)
        empty = [name for name, files in by_class.items() if not files]
        if empty:
            print_log(f'{folder}: no video of {len(empty)} of {len(by_class)} classes: {", ".join(empty)}', 'current',
                      logging.WARNING)
        return [(os.path.join(folder, name), label) for label, files in enumerate(by_class.values()) for name in files]

    @property
    def source(self) -> str:
        """The list, or the folder of class folders."""
        return self.ann_file or self.data_prefix.get('video') or ''

    def filter_data(self) -> List[Dict[str, Any]]:
        """Called by MMEngine after the list is read: find the unreadable videos and name each."""
        if self.check == 'none':
            return self.data_list
        found: List[Any] = [None]
        if is_main_process():
            decoder = next((t.decoder for t in self.pipeline.transforms if isinstance(t, VideoInit)), 'auto')
            probes = check_videos([info['filename'] for info in self.data_list], self.check, decoder,
                                  self.check_timeout, self.check_workers, title=f'checking {self.source}')
            found = [{p.path: p for p in probes if p.reason}]
        broadcast_object_list(found)
        bad: Dict[str, Probe] = found[0]
        if not bad:
            return self.data_list
        self._report(bad)
        return [info for info in self.data_list if info['filename'] not in bad]

    def _report(self, bad: Mapping[str, Probe]) -> None:
        total = len(self.data_list)
        lost = sum(info['filename'] in bad for info in self.data_list)
        head = f'{self.source}: {lost} of {total} videos cannot be read'
        listed = [f'{p.path}: {p.reason}' for p in bad.values()]
        if self.on_error == 'stop' or lost == total:
            if len(listed) > 20:  # all of them at once, but not in one line
                for line in listed:
                    print_log(f'unreadable video: {line}', 'current', logging.ERROR)
                listed = [*listed[:20], f'and {len(listed) - 20} more, all named above']
            hint = (
                "mend them, or leave them out by on_error='skip'" if lost < total else
                f"is data_prefix=dict(video={self.data_prefix.get('video')!r}) the folder that the list starts from?")
            hint += and_get(next(iter(bad)))
            raise VideoError(f'{head} ({"; ".join(listed)}): {hint}')
        use = 'scores are over' if self.test_mode else 'training uses'
        for line in [
                *(f'unreadable video left out: {line}' for line in listed), f'{head}; {use} the other {total - lost}'
        ]:
            print_log(line, logger='current', level=logging.WARNING)

    @property
    def skipped(self) -> int:
        """Videos skipped while loading, over all loader workers of this process."""
        return int(self._skipped.sum())

    def prepare_data(self, idx: int) -> Union[None, Dict[str, Any], List[Dict[str, Any]]]:
        """The item at ``idx``: a dict, a list of ``num_repeats`` dicts, or None where an unreadable video is skipped.

        Raises:
            VideoError: If the video cannot be read and must not be skipped.
        """
        info = self.get_data_info(idx)
        try:
            return self._repeat(info, self.num_repeats) if self.num_repeats else self.pipeline(info)
        except VideoError as error:
            if self.on_error == 'stop' or self.test_mode:
                raise
            worker = get_worker_info()
            self._skipped[worker.id % SLOTS if worker else 0] += 1
            print_log(
                f'unreadable video skipped ({self.skipped} so far): {error}', logger='current', level=logging.WARNING)
            return None

    def _repeat(self, results: Dict[str, Any], copies_wanted: int) -> List[Dict[str, Any]]:
        """Transforms up to the decoding run once, those after it once per copy of the frames."""
        transforms = iter(self.pipeline.transforms)
        while 'imgs' not in results:
            results = next(transforms)(results)
        rest = list(transforms)
        copies = []
        for _ in range(copies_wanted):
            item = copy.copy(results)
            item['imgs'] = [frame.copy() for frame in results['imgs']]
            for transform in rest:
                item = transform(item)
            copies.append(item)
        return copies


def _names(classes: Union[str, Sequence[str]], root: Optional[str]) -> Tuple[str, ...]:
    """Class names: those given, of a file, or of a folder of class folders."""
    if not isinstance(classes, str):
        return tuple(classes)
    place = os.path.join(root or '', os.path.expanduser(classes))
    return class_names(place) if os.path.isdir(place) else read_names(place)


def _resize_as_decoded(transforms: Sequence[Callable]) -> None:
    """Where a resize follows the decoding, each frame is resized as it comes: frames of full size are neither kept nor
    repeated, and a clip of 4K needs megabytes where it needed gigabytes."""
    for first, second in zip(transforms, transforms[1:]):
        if isinstance(first, VideoDecode) and isinstance(second, ShortSideResize) and first.resize is None:
            first.resize = second
