# SPDX-License-Identifier: Apache-2.0
"""Training on features of the frozen base that are computed once per image."""

import hashlib
import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.dist import all_gather_object, barrier, broadcast_object_list, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner.amp import autocast
from torch import nn
from torch.utils.data import DataLoader, Subset

from ..hooks.random_state import random_state, set_random_state
from ..registry import HOOKS
from ..sites import nearest
from ..version import __version__
from ..weights.atomic import part_of
from ..weights.reading import MAX_LIST, read_json
from .data import CachedView, check_deterministic, data_identity, input_digest, sources, with_dataset
from .store import PLACES, FeatureStore, Feed, backbone_of, base_identity

TYPES = {None: None, 'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
MODES = ('train', 'val')
COMPLETE = 'complete.json'
#: What gives the features of a batch.
Base = Callable[[Dict[str, Any]], Any]


class _Unusable(ValueError):
    """Features of an earlier run are not those that this one needs."""


def _agreed(decide: Callable[[], Any]) -> Any:
    """What process 0 decides, in all processes; its ValueError too."""
    values: List[Any] = [None, '']
    if get_rank() == 0:
        try:
            values[0] = decide()
        except ValueError as error:
            values[1] = str(error)
    broadcast_object_list(values, src=0)
    if values[1]:
        raise ValueError(values[1])
    return values[0]


def _refuse_several_machines() -> None:
    if len({*all_gather_object(platform.node())}) > 1:
        raise ValueError("FeatureCacheHook: processes on several machines cannot fill one table on disk; set "
                         "place='device' or place='host'")


def _marker(path: Path, rows: int) -> Dict[str, Any]:
    """What :meth:`FeatureStore.finish` wrote about features of so many samples."""
    try:
        known = read_json(path, MAX_LIST)
        if len(known['inputs']) == len(known['sums']) == rows:
            return dict(known)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise _Unusable(f'{path} is damaged, or of another version')


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
    structure, the precision and the versions. A later run compares what its samples are, the base's features of one
    batch and a sum of every row with those that were kept, and where they differ computes them again and says so.
    Several processes of a machine share one table on disk. On a CPU the features of a step lie where those of the next
    step will lie: copy what is to outlive a step.

    Args:
        modes: Loops that use the cache: 'train', or 'train' and 'val' where validation images are seen many times.
        dtype: None keeps features as they are computed; 'float16' or 'bfloat16' halves single precision (outputs then
            differ by some 1e-4).
        place: 'device', 'host' or 'disk' instead of the rule; they may take all that is free there.
        folder: Folder for features on disk; default ``<work_dir>/features``.

    Raises:
        ValueError: Before training starts, if an option is unknown, the data or the base are not the same every time,
            a method changes the token stream, the features fit nowhere, or processes on several machines would fill
            one table.
        OSError: With the name of the file, if the folder cannot be written to.
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
        if hasattr(getattr(runner, 'strategy', None), 'gathered'):
            raise ValueError('FeatureCacheHook: under FSDPStrategy no process holds the base, which the cache runs by '
                             'itself; switch one of them off')
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._feed = Feed(backbone_of(model))
        try:
            for mode in self.modes:
                loop = getattr(runner, f'{mode}_loop')
                if loop is None:
                    raise ValueError(
                        f'FeatureCacheHook: modes names {mode!r}, but the config has no {mode} loop; leave it out')
                check_deterministic(loop.dataloader.dataset, model)
                state = random_state()
                try:
                    self._fill(runner, model, mode, loop)
                finally:
                    set_random_state(state)
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
        key = self._key(runner, loop, model, mode)
        folder = Path(self.folder or Path(runner.work_dir) / 'features') / key

        def base(data: Dict[str, Any]) -> Any:
            return self._features(runner, model, loop, mode, data)

        training = model.training
        model.eval()
        try:
            ready = None
            if _agreed(lambda: self.place in (None, 'disk') and (folder / COMPLETE).exists()):
                ready, reason = self._found(base, loader, chosen, folder)
                if ready is None:
                    runner.logger.warning(f'Feature cache ({mode}): {reason}; the features are computed again')
            found = ready is not None
            if ready is None:
                runner.logger.info(f'Feature cache ({mode}): {len(chosen):,} samples go through the base once ...')
                ready = self._computed(base, loader, chosen, folder)
        finally:
            model.train(training)
        samples, store = ready
        self.stores[mode], self.keys[mode] = store, key
        self._use(
            loop,
            with_dataset(loader, CachedView(loader.dataset, [row_of[i] for i in first], samples, self._placeholder)))
        where = f'disk ({folder})' if store.place == 'disk' else store.place
        runner.logger.info(
            f'Feature cache ({mode}): {store.rows} samples, {store.nbytes / 2**20:.1f} MiB on {where}, '
            f'{"found" if found else "computed"} in {time.time() - start:.1f} s')

    def _key(self, runner: Any, loop: Any, model: nn.Module, mode: str) -> str:
        """16 hexadecimal digits of all that the features are known to depend on."""
        loader, wrapper = loop.dataloader, runner.optim_wrapper
        precision = [type(wrapper).__name__, str(getattr(wrapper, 'cast_dtype', None))
                     ] if mode == 'train' else [f'fp16={getattr(loop, "fp16", False)}']

        def digits() -> str:
            identity = dict(
                data=data_identity(loader.dataset, model),
                trunk=base_identity(backbone_of(model)),
                precision=[*precision, str(self.dtype), torch.get_float32_matmul_precision(),
                           torch.backends.cudnn.allow_tf32],
                device=next(model.parameters()).device.type,
                batch=loader.batch_size,
                versions=[__version__, torch.__version__])
            return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

        return str(_agreed(digits))

    def _batches(self, loader: DataLoader, chosen: List[int]) -> Iterator[Tuple[range, Any]]:
        """The chosen samples in batches of one size, with the rows that they have."""
        batch = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
        if not chosen:
            raise ValueError(f'{type(loader.dataset).__name__} has no samples, so there are no features to cache')
        # The last batch is filled up, so that every row is computed in a batch of the same size.
        padded = chosen + [chosen[-1]] * (-len(chosen) % batch)
        plain = DataLoader(
            Subset(loader.dataset, padded), batch, num_workers=loader.num_workers, collate_fn=loader.collate_fn)
        for number, data in enumerate(plain):
            if not number:
                inputs = data['inputs'][0]
                # the axes in front are kept: heads and preprocessors tell views and frames by them
                self._placeholder = inputs.new_zeros(*inputs.shape[:-2], 1, 1)
            yield range(number * batch, min(number * batch + batch, len(chosen))), data

    def _store(self, features: Any, data: Any, rows: int, folder: Path, found: bool = False) -> FeatureStore:
        """An empty store for features like these, or that of an earlier run."""
        device, world = next(self._feed.backbone.parameters()).device, get_world_size()
        store = FeatureStore(features, len(data['inputs']), rows, device, self.place, TYPES[self.dtype], folder, world,
                             found, _agreed)
        if found:
            return store
        if store.place == 'disk':
            _refuse_several_machines()
        barrier()  # before anyone writes, as some file systems reserve blocks by writing zeros
        return store

    def _found(self, base: Base, loader: DataLoader, chosen: List[int],
               folder: Path) -> Tuple[Optional[Tuple[List[Any], FeatureStore]], str]:
        """Data samples and the store of an earlier run, or None and why it cannot be used; then it is gone."""
        ready, reason = None, ''
        try:
            ready = self._read(base, loader, chosen, folder)
        except _Unusable as error:
            reason = str(error)
        reasons = [r for r in all_gather_object(reason) if r]
        if not reasons:
            return ready, ''
        _refuse_several_machines()  # another one may not see what is whole here
        if get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        barrier()
        return None, reasons[0]

    def _read(self, base: Base, loader: DataLoader, chosen: List[int], folder: Path) -> Any:
        """Read all samples once, and compare what they are with what the features in ``folder`` were computed of."""
        store: Optional[FeatureStore] = None
        samples: List[Any] = []
        known = _marker(folder / COMPLETE, len(chosen))
        for number, (rows, data) in enumerate(self._batches(loader, chosen)):
            # Processes share out what is compared, but for the first batch: behind it they act together.
            mine = not number or number % get_world_size() == get_rank()
            for row, inputs, sample in zip(rows, data['inputs'], data['data_samples']):
                if mine and input_digest(inputs) != known['inputs'][row]:
                    name = sample.metainfo.get('img_path', f'sample {row}')
                    raise _Unusable(f'{name} is another input than when those in {folder} were computed')
                samples.append(sample)
            if store is None:
                features = base(data)
                try:
                    store = self._store(features, data, len(chosen), folder, found=True)
                except ValueError as error:
                    raise _Unusable(str(error)) from None
                if not store.is_like(rows, features):
                    raise _Unusable(f'the base gives other features than those in {folder}')
            if mine and store.sums(rows) != known['sums'][rows.start:rows.stop]:
                raise _Unusable(f'those in {folder} are damaged')
        return samples, store

    def _computed(self, base: Base, loader: DataLoader, chosen: List[int],
                  folder: Path) -> Tuple[List[Any], FeatureStore]:
        """Read all samples once and run the base -> data samples (without images) and the store."""
        store: Optional[FeatureStore] = None
        samples: List[Any] = []
        digests: List[str] = []
        partial = Path(_agreed(lambda: str(part_of(folder))))
        try:
            # Every process reads everything, as it needs all labels; they share out the passes of the base.
            for number, (rows, data) in enumerate(self._batches(loader, chosen)):
                samples += data['data_samples'][:len(rows)]
                if store is None or store.place != 'disk' or number % get_world_size() == get_rank():
                    features = base(data)
                    if store is None:
                        store = self._store(features, data, len(chosen), partial)
                    store.put(rows, features)
                if store.place == 'disk' and get_rank() == 0:
                    digests += [input_digest(inputs) for _, inputs in zip(rows, data['inputs'])]
            assert store is not None
            barrier()  # rows of all processes are in the tables
            if store.place == 'disk' and get_rank() == 0:
                store.finish(partial / COMPLETE, digests)
                _take_name(partial, folder)
        except BaseException as error:  # also when interrupted
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and partial.name in str(error.filename):  # nobody asked for the part
                error.filename = str(error.filename).replace(partial.name, folder.name)
            raise
        return samples, store

    def _features(self, runner: Any, model: nn.Module, loop: Any, mode: str, data: Dict[str, Any]) -> Any:
        """What the trainable part reads of a batch, in the precision of the loop."""
        # of copies: mmpretrain's preprocessor moves the labels of the samples that it is given to its device
        samples = [sample.clone() for sample in data['data_samples']]
        ready = model.data_preprocessor({**data, 'data_samples': samples}, False)
        context = runner.optim_wrapper.optim_context(runner.model) if mode == 'train' else autocast(
            enabled=getattr(loop, 'fp16', False))
        with context:
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
