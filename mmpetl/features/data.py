# SPDX-License-Identifier: Apache-2.0
"""The data of a feature cache: whether it is the same every time, what tells it from other data, and how it is handed
out without its images."""

import copy
import hashlib
import json
import os
import random
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..hooks.random_state import drawing_from


def _drawn() -> Any:
    """Where the generators of the CPU are."""
    numpy: Any = np.random.get_state()
    return random.getstate(), numpy[1].tobytes(), numpy[2:], torch.get_rng_state().numpy().tobytes()


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
        name = type(getattr(transform, 't', transform)).__name__  # mmpretrain wraps those of torchvision
        if getattr(type(transform), '_methods_with_randomness', None) or 'Random' in name:
            return name
        inner = random_transform(transform)
        if inner:
            return inner
    return None


def check_deterministic(dataset: Any, model: nn.Module, probes: int = 4) -> None:
    """Refuse data that is not the same every time it is read: by name of the transform, and by reading some samples
    twice, which must neither come out differently nor draw random numbers.

    Raises:
        ValueError: Names the transform or the sample.
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
    # A transform may draw without saying so; two seeds bring it to light, on samples from all over the data. What acts
    # on few samples gives itself away by drawing for all.
    for index in sorted({round(i * (len(dataset) - 1) / max(probes - 1, 1)) for i in range(probes)}):
        seen = []
        for seed in (1, 2):
            with drawing_from(seed):
                before = _drawn()
                seen.append(torch.as_tensor(dataset[index]['inputs']))
                drew = _drawn() != before
        if seen[0].shape != seen[1].shape or not torch.equal(seen[0], seen[1]):
            raise ValueError(
                f'sample {index} of {type(dataset).__name__} is not the same when it is read twice; {remedy}')
        if drew:
            raise ValueError(
                f'a transform of {type(dataset).__name__} draws random numbers (seen at sample {index}); {remedy}')


def data_identity(dataset: Any, model: nn.Module) -> Dict[str, Any]:
    """What the inputs of the backbone depend on: samples (with size and time of their files), transforms,
    preprocessor."""
    digest = hashlib.sha256()
    for i in range(len(dataset)):
        info = {k: v for k, v in dataset.get_data_info(i).items() if k != 'sample_idx'}
        # What the files hold is compared later, sample by sample: see input_digest.
        files = [v for v in info.values() if isinstance(v, str) and os.path.isfile(v)]
        stats = [(os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files]
        digest.update(json.dumps([info, stats], sort_keys=True, default=str).encode())
    preprocessor = model.data_preprocessor
    plain = {
        k: v
        for k, v in vars(preprocessor).items() if isinstance(v, (int, float, str)) and k != 'training'
    }
    buffers = {k: v.flatten().tolist() for k, v in preprocessor.named_buffers()}
    return dict(
        samples=digest.hexdigest(),
        transforms=[repr(getattr(d, 'pipeline', None)) for d in base_datasets(dataset)],
        preprocessor=repr([sorted(plain.items()), sorted(buffers.items())]))


def input_digest(inputs: Any) -> str:
    """16 hexadecimal digits of what a pipeline made of a sample: type, shape and numbers."""
    tensor = torch.as_tensor(inputs).detach().cpu().contiguous()
    digest = hashlib.blake2b(f'{tensor.dtype}{tuple(tensor.shape)}'.encode(), digest_size=8)
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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
