# SPDX-License-Identifier: Apache-2.0
"""Training on features of the frozen base that are computed once per image."""

import copy
import hashlib
import json
import os
import random
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmengine.dist import barrier, broadcast_object_list, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..registry import HOOKS
from ..sites import nearest
from ..weights.atomic import part_of
from .store import PLACES, FeatureStore, Feed, backbone_of, base_identity

TYPES = {None: None, 'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
MODES = ('train', 'val')
COMPLETE = 'complete.json'


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Within the context random numbers may be drawn; afterwards the generators are where they were before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state_all()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        torch.cuda.set_rng_state_all(before[3])


# -- the data ---------------------------------------------------------------------------------------------------------


def base_datasets(dataset: Any) -> List[Any]:
    """The innermost datasets below wrappers such as ConcatDataset and RepeatDataset."""
    inner = getattr(dataset, 'datasets', None) or ([dataset.dataset] if hasattr(dataset, 'dataset') else [])
    return [found for d in inner for found in base_datasets(d)] or [dataset]


def sources(dataset: Any) -> List[int]:
    """For every sample of a dataset, the first sample that is the same one (repeating wrappers give a sample several
    numbers)."""
    first: Dict[Any, int] = {}
    if not hasattr(dataset, '_get_ori_dataset_idx'):  # all of MMEngine's wrappers have it, and no public name for it
        return list(range(len(dataset)))
    return [first.setdefault(dataset._get_ori_dataset_idx(i), i) for i in range(len(dataset))]


def random_transform(pipeline: Any) -> Optional[str]:
    """Name of a transform that declares itself random, by mmcv's ``cache_randomness`` or by its name; nested ones
    included."""
    for transform in getattr(pipeline, 'transforms', ()) or ():
        name = type(transform).__name__
        if getattr(type(transform), '_methods_with_randomness', None) or 'Random' in name:
            return name
        inner = random_transform(transform)
        if inner:
            return inner
    return None


def check_deterministic(dataset: Any, model: nn.Module, probes: int = 4) -> None:
    """Refuse data that is not the same every time it is read: by name of the transform, and by reading some samples
    twice.

    Raises:
        ValueError: Names the transform, or the sample that came out differently.
    """
    remedy = ('the feature cache needs the same picture every time: use the test pipeline for training, or remove the '
              'FeatureCacheHook')
    for base in base_datasets(dataset):
        name = random_transform(getattr(base, 'pipeline', None))
        if name:
            raise ValueError(f'{name} in the pipeline of {type(base).__name__} is random; {remedy}')
    for mixing in ('batch_augments', 'blending'):
        if getattr(model.data_preprocessor, mixing, None) is not None:
            raise ValueError(f'the data preprocessor mixes pictures ({mixing}); {remedy}')
    # A transform may draw without saying so; two seeds bring it to light, on samples from all over the data.
    with random_state_kept():
        for index in sorted({round(i * (len(dataset) - 1) / max(probes - 1, 1)) for i in range(probes)}):
            seen = []
            for seed in (1, 2):
                random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
                seen.append(torch.as_tensor(dataset[index]['inputs']))
            if seen[0].shape != seen[1].shape or not torch.equal(seen[0], seen[1]):
                raise ValueError(
                    f'sample {index} of {type(dataset).__name__} is not the same when it is read twice; {remedy}')


def data_identity(dataset: Any, model: nn.Module) -> Dict[str, Any]:
    """What the inputs of the backbone depend on: samples (with size and time of their files), transforms,
    preprocessor."""
    digest = hashlib.sha256()
    for i in range(len(dataset)):
        info = {k: v for k, v in dataset.get_data_info(i).items() if k != 'sample_idx'}
        # To hash what the files hold would take as long as to compute the features again.
        files = [v for v in info.values() if isinstance(v, str) and os.path.isfile(v)]
        stats = [(os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files]
        digest.update(json.dumps([info, stats], sort_keys=True, default=str).encode())
    preprocessor = model.data_preprocessor
    plain = {
        k: v
        for k, v in vars(preprocessor).items() if isinstance(v, (int, float, str)) and k[0] != '_' and k != 'training'
    }
    buffers = {k: v.flatten().tolist() for k, v in preprocessor.named_buffers()}
    return dict(
        samples=digest.hexdigest(),
        transforms=[repr(getattr(d, 'pipeline', None)) for d in base_datasets(dataset)],
        preprocessor=repr([sorted(plain.items()), sorted(buffers.items())]))


class CachedView(Dataset):
    """A dataset without its images: every item has its data sample, a placeholder, and the number of its row in the
    cache."""

    def __init__(self, dataset: Any, rows: Sequence[int], samples: Sequence[Any], placeholder: torch.Tensor) -> None:
        self.dataset, self.rows, self.samples, self.placeholder = dataset, rows, samples, placeholder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        sample = copy.deepcopy(self.samples[self.rows[index]])
        sample.set_metainfo(dict(cache_row=self.rows[index]))
        return dict(inputs=self.placeholder, data_samples=sample)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # of an object that is being copied: it would ask for it for ever
            raise AttributeError(name)
        return getattr(self.dataset, name)


def with_dataset(loader: DataLoader, dataset: Dataset) -> DataLoader:
    """A loader like ``loader``, with the same sampler and the same use of random numbers, that needs no workers."""
    order: Dict[str, Any] = dict(batch_sampler=loader.batch_sampler)
    if loader.batch_size is not None:
        order = dict(sampler=loader.sampler, batch_size=loader.batch_size, drop_last=loader.drop_last)
    # A loader draws a seed whenever it starts its workers: before every epoch, or once if they are persistent.
    generator = torch.Generator() if loader.persistent_workers else loader.generator
    return DataLoader(dataset, num_workers=0, collate_fn=loader.collate_fn, generator=generator, **order)


def _take_name(partial: Path, folder: Path) -> None:
    """Give complete features their name, unless another run has computed the same ones in the meantime."""
    if not (folder / COMPLETE).exists():
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was cut
        try:
            os.replace(partial, folder)
        except OSError:  # the other run was quicker, which is as good
            if not (folder / COMPLETE).exists():
                raise
    shutil.rmtree(partial, ignore_errors=True)  # the tables that this run has mapped stay as long as it needs them


# -- the hook ---------------------------------------------------------------------------------------------------------


@HOOKS.register_module()
class FeatureCacheHook(Hook):
    """Compute the features of the frozen base once per image before training, then train on them.

    For linear probes (no methods, no ``tune``), SynQT, VQT, LST and Res-Tuning-Bypass with a pipeline that is not
    random. Images are not even decoded again. Losses, gradients and random numbers are those of training without the
    hook; on a CPU in single precision bitwise so.

    The features lie in the first of device memory, pinned host memory and disk in whose free half they fit. On disk
    they stay for later runs, under a key of the samples, their files, the transforms, the base's weights and
    structure, and the type. Several processes share one table on disk. On a CPU the features of a step lie where those
    of the next step will lie: copy what is to outlive a step.

    Args:
        modes: Loops that use the cache: 'train', or 'train' and 'val' where validation images are seen many times.
        dtype: None keeps features as they are computed; 'float16' or 'bfloat16' halves single precision (outputs then
            differ by some 1e-4).
        place: 'device', 'host' or 'disk' instead of the rule.
        folder: Folder for features on disk; default ``<work_dir>/features``.

    Raises:
        ValueError: Before training starts, if an option is unknown, the data or the base are not the same every time,
            a method changes the token stream, or the features fit nowhere.
    """

    priority = 'VERY_LOW'  # behind the hooks that still change the model or its data before training

    def __init__(self,
                 modes: Union[str, Sequence[str]] = 'train',
                 dtype: Optional[str] = None,
                 place: Optional[str] = None,
                 folder: Optional[str] = None) -> None:
        self.modes = (modes, ) if isinstance(modes, str) else tuple(modes)
        for value, known, name in [
                *((m, MODES, 'modes') for m in self.modes), (dtype, TYPES, 'dtype'), (place, (None, *PLACES), 'place')
        ]:
            if value not in known:
                raise ValueError(f'FeatureCacheHook: unknown {name} {value!r}' +
                                 nearest(str(value), filter(None, known)))
        self.dtype, self.place, self.folder = dtype, place, folder
        self.stores: Dict[str, FeatureStore] = {}
        self.keys: Dict[str, str] = {}
        self._feed: Optional[Feed] = None
        self._restore: List[Tuple[Any, Any]] = []

    # -- filling ------------------------------------------------------------------------------------------------------

    def before_train(self, runner: Any) -> None:
        if runner.cfg.get('compile'):
            raise ValueError(
                'FeatureCacheHook: compile=True would freeze the features of one batch into the graph; switch one of '
                'them off'
            )
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._feed = Feed(backbone_of(model))
        try:
            for mode in self.modes:
                loop = getattr(runner, f'{mode}_loop')
                if loop is None:
                    raise ValueError(f'FeatureCacheHook: modes names {mode!r}, but the config has no {mode} loop')
                check_deterministic(loop.dataloader.dataset, model)
                with random_state_kept():
                    self._fill(runner, model, mode, loop)
                old = self._restore[-1][1]
                if old.persistent_workers and old.generator is None and not hasattr(loop, 'dataloader_iterator'):
                    torch.empty((), dtype=torch.int64).random_()  # the seed that starting the workers would have drawn
        except BaseException:  # also when interrupted: the caller may go on to use model and loaders
            self.after_train(runner)
            raise

    def _fill(self, runner: Any, model: nn.Module, mode: str, loop: Any) -> None:
        start, loader = time.time(), loop.dataloader
        first = sources(loader.dataset)
        chosen = sorted(set(first))
        row_of = {index: row for row, index in enumerate(chosen)}
        key = self._key(runner, loader, model)
        folder = Path(self.folder or Path(runner.work_dir) / 'features') / key
        found = self._agreed(self.place in (None, 'disk') and (folder / COMPLETE).exists())
        partial = Path(self._agreed(str(part_of(folder)) if get_rank() == 0 and not found else ''))
        if not found:
            runner.logger.info(f'Feature cache ({mode}): {len(chosen):,} samples go through the base once ...')
        samples, store = self._run_base(runner, model, loader, chosen, folder if found else partial, found)
        barrier()  # rows of all processes are in the tables
        if store.place == 'disk' and not found and get_rank() == 0:
            store.finish(partial / COMPLETE)
            _take_name(partial, folder)
        self.stores[mode], self.keys[mode] = store, key
        self._use(
            loop,
            with_dataset(loader, CachedView(loader.dataset, [row_of[i] for i in first], samples, self._placeholder)))
        runner.logger.info(
            f'Feature cache ({mode}): {store.rows} samples, {store.nbytes / 2**20:.1f} MiB on {store.place}, '
            f'{"found" if found else "computed"} in {time.time() - start:.1f} s, key {key}')

    def _key(self, runner: Any, loader: DataLoader, model: nn.Module) -> str:
        precision = [
            type(runner.optim_wrapper).__name__,
            str(getattr(runner.optim_wrapper, 'cast_dtype', None)),
            str(self.dtype)
        ]
        identity = dict(
            data=data_identity(loader.dataset, model),
            trunk=base_identity(backbone_of(model)),
            precision=precision,
            device=next(model.parameters()).device.type,
            batch=loader.batch_size)
        return self._agreed(hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16])

    @staticmethod
    def _agreed(value: Any) -> Any:
        """The value of process 0 in all processes."""
        values = [value]
        broadcast_object_list(values, src=0)
        return values[0]

    def _run_base(self, runner: Any, model: nn.Module, loader: DataLoader, chosen: List[int], folder: Path,
                   found: bool) -> Tuple[List[Any], FeatureStore]:
        """Read all samples once and run the base where features are missing -> data samples (without images) and the
        store."""
        store: Optional[FeatureStore] = None
        samples: List[Any] = []
        batch = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
        device, world, training = next(model.parameters()).device, get_world_size(), model.training
        place = 'disk' if found else self.place
        # The last batch is filled up, so that every row is computed in a batch of the same size.
        padded = chosen + [chosen[-1]] * (-len(chosen) % batch)
        plain = DataLoader(
            Subset(loader.dataset, padded), batch, num_workers=loader.num_workers, collate_fn=loader.collate_fn)
        model.eval()
        try:
            # Every process reads everything, as it needs all labels; they share out the passes of the base.
            for number, data in enumerate(plain):
                rows = range(number * batch, min(number * batch + batch, len(chosen)))
                samples += data['data_samples'][:len(rows)]
                if store is not None and (found or (store.place == 'disk' and number % world != get_rank())):
                    continue
                features = self._features(runner, model, data)
                if store is None:
                    store = FeatureStore(features, batch, len(chosen), device, place, TYPES[self.dtype], folder, world
                                         > 1)
                    inputs = data['inputs'][0]
                    # the axes in front are kept: heads and preprocessors tell views and frames by them
                    self._placeholder = inputs.new_zeros(*inputs.shape[:-2], 1, 1)
                if not found:
                    store.put(rows, features)
        finally:
            model.train(training)
        if store is None:
            raise ValueError(f'{type(loader.dataset).__name__} has no samples, so there are no features to cache')
        return samples, store

    def _features(self, runner: Any, model: nn.Module, data: Dict[str, Any]) -> Any:
        # of copies: mmpretrain's preprocessor moves the labels of the samples that it is given to its device
        samples = [sample.clone() for sample in data['data_samples']]
        ready = model.data_preprocessor({**data, 'data_samples': samples}, False)
        with runner.optim_wrapper.optim_context(runner.model):
            return self._feed.capture(lambda: model(**ready, mode='tensor'))

    # -- using --------------------------------------------------------------------------------------------------------

    def _use(self, loop: Any, loader: DataLoader) -> None:
        self._restore.append((loop, loop.dataloader))
        loop.dataloader = loader
        if hasattr(loop, 'dataloader_iterator'):  # a loop over iterations holds on to the old loader
            sampler = loader.sampler
            if hasattr(sampler, '_indices_of_rank'):
                sampler.indices = sampler._indices_of_rank()  # workers of the old loader have already drawn some
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loader)

    def _before_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, mode: str = 'train') -> None:
        if self._feed is not None and mode in self.stores:
            rows = [sample.metainfo['cache_row'] for sample in data_batch['data_samples']]
            self._feed.features = self.stores[mode].fetch(rows, reuse=True)

    def _after_iter(self,
                    runner: Any,
                    batch_idx: int,
                    data_batch: Any = None,
                    outputs: Any = None,
                    mode: str = 'train') -> None:
        if self._feed is not None:
            self._feed.features = None

    def after_train(self, runner: Any) -> None:
        """Give loops and backbone back what they had."""
        if self._feed is not None:
            self._feed.remove()
            self._feed = None
        while self._restore:
            loop, loader = self._restore.pop()
            loop.dataloader = loader
        self.stores.clear()
