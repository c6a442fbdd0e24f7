# SPDX-License-Identifier: Apache-2.0
"""Everything random in a run, as plain tensors that a checkpoint can hold, and samples that draw from numbers of their
own.

MMEngine saves no random states. A loader's workers have states of their own that nobody can read; so every sample that
a training loader reads is given a seed made of the run's seed, the process, the epoch and its place in the epoch.
Augmentation then depends neither on the number of workers nor on where a run was resumed.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Dict, Optional

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import BatchSampler, DataLoader

from ..datasets.sample_errors import naming_sample


def random_state() -> Dict[str, Any]:
    """States of Python, NumPy, torch on the CPU and on every GPU: tensors and numbers only."""
    version, numbers, gauss = random.getstate()
    drawn = np.random.get_state(legacy=False)
    assert drawn['bit_generator'] == 'MT19937'
    return dict(
        python=[version, torch.tensor(numbers, dtype=torch.int64), gauss],
        numpy=[torch.from_numpy(drawn['state']['key'].astype(np.int64)), int(drawn['state']['pos']),
               int(drawn['has_gauss']), float(drawn['gauss'])],
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else [])


def set_random_state(state: Dict[str, Any]) -> None:
    """Take up the states of :func:`random_state`; those of GPUs that are not here stay unused."""
    version, numbers, gauss = state['python']
    random.setstate((version, tuple(numbers.tolist()), gauss))
    keys, position, has_gauss, cached = state['numpy']
    np.random.set_state(('MT19937', keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] and torch.cuda.is_available():
        for device, found in enumerate(state['cuda'][:torch.cuda.device_count()]):
            torch.cuda.set_rng_state(found.cpu(), device)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Within the context the CPU's generators start from ``seed``; afterwards they are where they were before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # it takes no larger one
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset the GPUs' generators too
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class Draw(int):
    """A sample's number that brings along the seed with which the sample is read."""

    seed: int

    def __new__(cls, index: int, seed: int) -> 'Draw':
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self) -> Any:
        return Draw, (int(self), self.seed)


class Draws:
    """A sampler that gives every number of another one a seed, and may begin in the middle.

    Args:
        sampler: The sampler, of any kind.
        seed: Seed of the run.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler, self.seed = sampler, seed
        self.epoch, self.skip = 0, 0
        self._rounds: Optional[int] = None

    def begin(self, epoch: int, skip: int = 0) -> None:
        """What the next pass is: number of the epoch, and samples at its beginning to leave out."""
        self.epoch, self.skip, self._rounds = epoch, skip, None

    def __iter__(self) -> Iterator[int]:
        # a loop that counts iterations passes over the data without saying so
        self._rounds = self.epoch if self._rounds is None else self._rounds + 1
        skip, self.skip = self.skip, 0
        root = np.random.SeedSequence([self.seed % 2**63, get_rank(), self._rounds]).generate_state(1, np.uint64)[0]
        for place, index in enumerate(self.sampler):
            if place >= skip:
                mixed = (int(root) + 0x9E3779B97F4A7C15 * (place + 1)) & (2**64 - 1)  # SplitMix64's step and mixing
                mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
                yield Draw(index, (mixed ^ (mixed >> 31)) >> 1)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name == 'sampler':  # of an object that is being copied: it would ask for it for ever
            raise AttributeError(name)
        return getattr(self.sampler, name)


_classes: Dict[type, type] = {}


def _reading_draws(cls: Any) -> type:
    """Subclass of a dataset's class that reads a sample which comes with a seed with that seed, and names the sample in
    errors; one per class.

    Nothing but the class of an object changes, as it does in the backbone, so whatever looks at the dataset finds it
    unchanged.
    """
    if hasattr(cls, 'reads_draws'):
        return cls

    def __getitem__(self: Any, index: Any) -> Any:
        with naming_sample(self, index):
            if not isinstance(index, Draw):
                return cls.__getitem__(self, index)
            with drawing_from(index.seed):
                return cls.__getitem__(self, int(index))

    # Spawned workers get the dataset by pickle, which finds no class that was made at run time.
    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        return _rebuilt, (cls, ), self.__dict__

    if cls not in _classes:
        members: Dict[str, Any] = dict(
            __getitem__=__getitem__, __reduce_ex__=__reduce_ex__, __doc__=cls.__doc__, __module__=cls.__module__,
            reads_draws=True)
        if hasattr(cls, '__getitems__'):  # one by one where a whole batch would be read at once
            members['__getitems__'] = lambda self, indices: [self[index] for index in indices]
        _classes[cls] = type(cls.__name__, (cls, ), members)
    return _classes[cls]


def _rebuilt(cls: type) -> Any:
    made: Any = _reading_draws(cls)
    return made.__new__(made)


def seed_draws(loader: DataLoader, seed: Optional[int]) -> Optional[str]:
    """Let a training loader read every sample with a seed of its own, and start its workers without drawing from the
    run's random numbers.

    Args:
        loader: A loader that has not started.
        seed: Seed of the run.

    Returns:
        Why that is impossible, None if it is done.
    """
    loader.generator = torch.Generator().manual_seed(int(seed or 0) % 2**63)
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler:  # a subclass may look into its sampler, or make up indices of its own
        return f'batches come from {type(batches).__name__}'
    try:
        loader.dataset.__class__ = _reading_draws(type(loader.dataset))
    except TypeError as error:
        return f'{type(loader.dataset).__name__}: {error}'
    batches.sampler = Draws(batches.sampler, int(seed or 0))  # type: ignore[assignment]
    return None


def read_by_sample(loader: DataLoader) -> None:
    """Let the dataset of a loader name the sample in errors; classes that cannot be extended are left alone."""
    with suppress(TypeError):
        loader.dataset.__class__ = _reading_draws(type(loader.dataset))


def begin_draws(loader: DataLoader, epoch: int, batches: int = 0) -> int:
    """Say which epoch a loader reads next, and leave out the first ``batches`` where that costs nothing.

    Returns:
        Batches that are still to be read and thrown away.
    """
    sampler = getattr(loader.batch_sampler, 'sampler', None)
    if not isinstance(sampler, Draws):
        return batches
    sampler.begin(epoch, batches * (loader.batch_size or 1))
    return 0
