# SPDX-License-Identifier: Apache-2.0
"""Frozen features, computed once per image: where they are kept, and how a backbone is fed with them.

What is kept is what the trainable part reads: the outputs of the backbone for a linear probe, the per-block activations
for side methods (SynQT, VQT, LST, Res-Tuning-Bypass). That is valid only where the frozen base sees the same input
every time and nothing trainable acts on its tokens; :func:`check_cacheable` refuses everything else.

Where the features go is a rule, not a guess: the first of device memory, pinned host memory and disk in whose free half
they fit.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..weights.fingerprint import fingerprint

PLACES = ('device', 'host', 'disk')


def backbone_of(model: nn.Module) -> nn.Module:
    """``model.backbone``, through a distributed wrapper.

    Raises:
        ValueError: If the model has no backbone of this package.
    """
    model = model.module if is_model_wrapper(model) else model
    backbone = getattr(model, 'backbone', model)
    if not hasattr(backbone, 'petl'):
        raise ValueError(f'frozen features need a backbone of this package (for example mmpetl.VisionTransformer), not '
                         f'{type(backbone).__name__}')
    return backbone


def check_cacheable(backbone: nn.Module) -> None:
    """Refuse a backbone whose frozen features are not the same every time.

    Raises:
        ValueError: If a method acts on the token stream, a base parameter trains, or the base has dropout in train
            mode.
    """
    for method in backbone.petl.values():
        if method.points() != {'side'}:
            raise ValueError(
                f'{type(method).__name__} changes the token stream, so the frozen features cannot be cached; use a '
                f'linear '
                'probe, SynQT, VQT, LST or ResTuningBypass, or train without the feature cache')
        if method.over_time:
            raise ValueError(f'{type(method).__name__} reads the frames of clips, which the feature cache cannot tell '
                             'from samples; train without it')
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad and not name.startswith('petl.'):
            raise ValueError(f'{name} trains, so the frozen features cannot be cached; remove it from tune')
    if backbone.petl.trunk == 'train':
        for name, module in backbone.named_modules():
            # nn.Dropout, DropPath, attentions of mmpretrain; in others attn_drop is a module, found by itself
            rates = [getattr(module, key, 0) for key in ('p', 'drop_prob', 'attn_drop')]
            if not name.startswith('petl.') and any(isinstance(r, float) and r > 0 for r in rates):
                raise ValueError(
                    f"{name} drops at random in the frozen base, so its features cannot be cached; set trunk='eval'")


# -- memory -----------------------------------------------------------------------------------------------------------


def free_host_bytes() -> int:
    """Bytes of host memory that can still be taken: what the kernel reports, or less where the control group allows
    less."""
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    meminfo = Path('/proc/meminfo')
    if meminfo.exists():
        found = [line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith('MemAvailable:')]
        free = int(found[0]) * 1024 if found else free
    limit, used = Path('/sys/fs/cgroup/memory.max'), Path('/sys/fs/cgroup/memory.current')
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def free_bytes(place: str, device: torch.device, folder: Path) -> int:
    """Free bytes of a place; on a CPU the device is the host."""
    if place == 'disk':
        existing = next(p for p in (folder, *folder.resolve().parents) if p.exists())
        return shutil.disk_usage(existing).free
    if place == 'device' and device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    return free_host_bytes()


def choose_place(size: int, device: torch.device, folder: Path, allowed: Sequence[str] = PLACES) -> str:
    """The first place in whose free half ``size`` bytes fit.

    Raises:
        ValueError: If they fit nowhere.
    """
    # Half, as training itself has taken nothing yet: this runs before the first step.
    free = {place: free_bytes(place, device, folder) for place in PLACES if place in allowed}
    for place, available in free.items():
        if size <= available / 2:
            return place
    held = ', '.join(f'{place} {available / 2**30:.1f} GiB' for place, available in free.items())
    raise ValueError(
        f"the features need {size / 2**30:.1f} GiB, more than half of what is free ({held}): set dtype='float16', "
        "read less (context='absorb', fewer layers), or train without the feature cache")


# -- the store --------------------------------------------------------------------------------------------------------


class FeatureStore:
    """A table per cached tensor, one row per sample.

    Args:
        example: Features of one batch: tensors in any nesting of lists, tuples and dicts, all with the batch as first
            axis (or a multiple of it where a sample has several views).
        batch: Samples in ``example``.
        rows: Samples to keep.
        device: Where :meth:`fetch` puts the features.
        place: 'device', 'host', 'disk', or None for the rule of :func:`choose_place`.
        dtype: Floating-point type of the tables; None keeps the type of the features, so that nothing is lost.
        folder: Folder of the files when they are kept on disk.
        shared: Several processes fill one table: only 'disk' can do that.

    Raises:
        ValueError: If the features fit nowhere, or the first axis of a tensor is not a multiple of the batch.
    """

    def __init__(self,
                 example: Any,
                 batch: int,
                 rows: int,
                 device: torch.device,
                 place: Optional[str] = None,
                 dtype: Optional[torch.dtype] = None,
                 folder: Path = Path('features'),
                 shared: bool = False) -> None:
        leaves, self.spec = pytree.tree_flatten(example)
        if not leaves or any(not isinstance(t, Tensor) or len(t) % batch for t in leaves):
            raise ValueError(
                f'cached features must be tensors whose first axis is a multiple of the batch size {batch}')
        self.rows, self.device, self.folder = rows, torch.device(device), Path(folder)
        self.types = [t.dtype for t in leaves]
        kept = [dtype if dtype is not None and t.is_floating_point() else t.dtype for t in leaves]
        self.shapes: List[Tuple[int, ...]] = [(len(t) // batch, *t.shape[1:]) for t in leaves]
        self.nbytes = rows * sum(s.numel() * t.itemsize for s, t in zip(map(torch.Size, self.shapes), kept))
        allowed = ('disk', ) if shared else PLACES
        self.place = place or choose_place(self.nbytes, self.device, self.folder, allowed)
        self.tables = [self._table(i, t, torch.Size(s)) for i, (t, s) in enumerate(zip(kept, self.shapes))]
        self._reused: Dict[int, Tensor] = {}

    def _table(self, number: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        if self.place == 'disk':
            self.folder.mkdir(parents=True, exist_ok=True)
            size = self.rows * shape.numel()
            path = self.folder / f'{number}.bin'
            # torch would write through a link, and fill up a file that is too short; 0: another process is making it
            if path.is_symlink() or path.exists() and not (
                    path.is_file() and path.stat().st_size in (0, size * dtype.itemsize)):
                raise ValueError(f'{path} is no table of {size} numbers of type {dtype}: delete the folder, the '
                                 'features are computed again')
            table = torch.from_file(str(path), shared=True, size=size, dtype=dtype)
            return table.view(self.rows, *shape)
        if self.place == 'host':
            return torch.empty(self.rows, *shape, dtype=dtype, pin_memory=torch.cuda.is_available())
        return torch.empty(self.rows, *shape, dtype=dtype, device=self.device)

    def put(self, indices: Sequence[int], features: Any) -> None:
        """Keep the features of samples; the first ``len(indices)`` of the batch are used."""
        for table, shape, leaf in zip(self.tables, self.shapes, pytree.tree_leaves(features)):
            index = torch.as_tensor(indices, device=table.device)
            table[index] = leaf[:len(indices) * shape[0]].unflatten(0, (-1, shape[0])).to(table)

    def fetch(self, indices: Sequence[int], reuse: bool = False) -> Any:
        """Features of samples on the device, in their original nesting and type.

        Args:
            indices: The samples.
            reuse: The features may lie in memory that the next call with ``reuse`` overwrites. That is much quicker
                where every new tensor costs fresh pages of memory, as on a CPU.
        """
        index = torch.as_tensor(indices)
        leaves = [self._rows(i, index, reuse).flatten(0, 1).to(d) for i, d in enumerate(self.types)]
        return pytree.tree_unflatten(leaves, self.spec)

    def _rows(self, number: int, index: Tensor, reuse: bool) -> Tensor:
        table = self.tables[number]
        if self.place == 'host' and self.device.type == 'cuda':
            # Row by row, straight out of pinned memory: gathering on the host first would copy everything twice.
            out = torch.empty(len(index), *table.shape[1:], dtype=table.dtype, device=self.device)
            for row, source in zip(out, index.tolist()):
                row.copy_(table[source], non_blocking=True)
            return out
        if reuse and self.device.type == 'cpu':
            space = self._reused.get(number)
            if space is None or len(space) < len(index):
                space = self._reused[number] = torch.empty(len(index), *table.shape[1:], dtype=table.dtype)
            return torch.index_select(table, 0, index, out=space[:len(index)])
        return table.index_select(0, index.to(table.device)).to(self.device)

    def finish(self, marker: Path) -> None:
        """Write files of a store on disk through to the disk, then ``marker`` (JSON) that says so."""
        # In this order: after a power cut a marker must not stand beside tables that never reached the disk.
        for file in sorted(self.folder.glob('*.bin')):
            with file.open('rb+') as f:
                os.fsync(f.fileno())
        with marker.open('w') as f:
            json.dump(dict(rows=self.rows, shapes=self.shapes), f)
            f.flush()
            os.fsync(f.fileno())


# -- feeding a backbone -----------------------------------------------------------------------------------------------


class _Captured(Exception):
    """Ends a forward pass as soon as the frozen features are there."""


class Feed:
    """Stands between the frozen part of a backbone and its trainable one.

    ``capture`` returns the frozen features of an input; while ``features`` is set, the backbone uses them and the base
    does not run. The backbone is given back its own behaviour by :meth:`remove`.

    Args:
        backbone: A backbone of this package.

    Raises:
        ValueError: See :func:`check_cacheable`.
    """

    def __init__(self, backbone: nn.Module) -> None:
        check_cacheable(backbone)
        #: What the backbone shall use instead of running its blocks, or None.
        self.features: Any = None
        self._capturing = False
        # A side method asks for its reads through ``petl.record``; without one the features are the backbone's own
        # outputs.
        self._owner, self._name = (backbone.petl, 'record') if backbone.petl.side_active() else (backbone, 'forward')
        self._original: Callable[..., Any] = getattr(self._owner, self._name)
        setattr(self._owner, self._name, self._instead)

    def _instead(self, *args: Any, **kwargs: Any) -> Any:
        if self.features is not None:
            return self.features
        found = self._original(*args, **kwargs)
        if self._capturing:
            raise _Captured(found)
        return found

    @torch.no_grad()
    def capture(self, run: Callable[[], Any]) -> Any:
        """Frozen features of whatever ``run()`` gives to the backbone; nothing behind the base runs.

        Raises:
            ValueError: If ``run`` never reaches the backbone.
        """
        self._capturing = True
        try:
            run()
        except _Captured as captured:
            return captured.args[0]
        finally:
            self._capturing = False
        raise ValueError('the model did not run its backbone, so there are no features to cache')

    def remove(self) -> None:
        """Give the backbone back its own behaviour."""
        self.features = None
        self._owner.__dict__.pop(self._name, None)


def base_identity(backbone: nn.Module) -> Dict[str, Any]:
    """What the features of a backbone depend on: weights, structure, settings and what is read."""
    side = backbone.petl.side_method()
    state = {k: v for k, v in backbone.state_dict().items() if not k.startswith('petl.')}
    modules = [
        f'{name}:{type(m).__name__}:{m.extra_repr()}' for name, m in backbone.named_modules()
        if not name.startswith('petl')
    ]
    plain = {
        k: v
        for k, v in vars(backbone).items()
        if isinstance(v, (int, float, str, list, tuple)) and k[0] != '_' and k != 'training'
    }
    return dict(weights=fingerprint(state), modules=modules, settings=repr(sorted(plain.items())),
                reads=sorted(side.side_reads) if side is not None else 'outputs')
