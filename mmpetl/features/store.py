# SPDX-License-Identifier: Apache-2.0
"""Frozen features, computed once per image: where they are kept, and how a backbone is fed with them.

What is kept is what the trainable part reads: the outputs of the backbone for a linear probe, the per-block activations
for side methods (SynQT, VQT, LST, Res-Tuning-Bypass). That is valid only where the frozen base sees the same input
every time and nothing trainable acts on its tokens; :func:`check_cacheable` refuses everything else.

Where the features go is a rule, not a guess: the first of device memory, pinned host memory and disk in whose free half
they fit.
"""

import json
import math
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

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
        # Files that were read count as used until somebody needs the memory.
        stat = used.with_name('memory.stat').read_text().split()
        files = int(stat[stat.index('inactive_file') + 1]) if 'inactive_file' in stat else 0
        free = min(free, int(limit.read_text()) - int(used.read_text()) + files)
    return free


def free_bytes(place: str, device: torch.device, folder: Path) -> int:
    """Free bytes of a place; on a CPU the device is the host."""
    if place == 'disk':
        existing = next(p for p in (folder, *folder.resolve().parents) if p.exists())
        return shutil.disk_usage(existing).free
    if place == 'device' and device.type == 'cuda':
        # and what torch holds of earlier tensors without a use for it
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return free_host_bytes()


def _amount(size: int) -> str:
    return f'{size / 2**30:.1f} GiB' if size >= 2**30 else f'{size / 2**20:.1f} MiB'


def choose_place(needs: Mapping[str, int], device: torch.device, folder: Path, share: float = 0.5) -> str:
    """The first place in whose free share the bytes fit that the features need there.

    Args:
        needs: Bytes per place, only of places that may be chosen.
        device: Where the model is.
        folder: Folder of the files on disk.
        share: How much of what is free may be taken. Half by default, as training itself has taken nothing yet: this
            runs before the first step.

    Raises:
        ValueError: If they fit nowhere.
    """
    free = {place: free_bytes(place, device, folder) for place in PLACES if place in needs}
    for place, available in free.items():
        if needs[place] <= available * share:
            return place
    held = ', '.join(f'{place} {_amount(available)}' for place, available in free.items())
    what = 'half of what is free' if share < 1 else 'what is free'
    disk = f', name another folder than {folder.parent}' if 'disk' in free else ''
    raise ValueError(
        f"the features need {_amount(min(needs.values()))}, more than {what} ({held}): set dtype='float16', "
        f"read less (context='absorb', fewer layers){disk}, or train without the feature cache")


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
        processes: How many of this machine make such a store. Several fill one table, which only 'disk' can do, unless
            a place is given.
        found: The files are there, and are only read.
        agreed: Called with what chooses the place; several processes let one of them choose for all.

    Raises:
        ValueError: If the features fit nowhere, the first axis of a tensor is not a multiple of the batch, or a file
            that is to be read is missing or of another size.
        OSError: With the name of the file, if the disk has no room for it.
    """

    def __init__(self,
                 example: Any,
                 batch: int,
                 rows: int,
                 device: torch.device,
                 place: Optional[str] = None,
                 dtype: Optional[torch.dtype] = None,
                 folder: Path = Path('features'),
                 processes: int = 1,
                 found: bool = False,
                 agreed: Callable[[Callable[[], str]], str] = lambda choose: choose()) -> None:
        leaves, self.spec = pytree.tree_flatten(example)
        if not leaves or any(not isinstance(t, Tensor) or len(t) % batch for t in leaves):
            raise ValueError(
                f'cached features must be tensors whose first axis is a multiple of the batch size {batch}')
        self.rows, self.device, self.folder = rows, torch.device(device), Path(folder)
        self.types = [t.dtype for t in leaves]
        kept = [dtype if dtype is not None and t.is_floating_point() else t.dtype for t in leaves]
        self.shapes: List[Tuple[int, ...]] = [(len(t) // batch, *t.shape[1:]) for t in leaves]
        sizes = [rows * math.prod(s) * t.itemsize for s, t in zip(self.shapes, kept)]
        self.nbytes = sum(sizes)
        if found:
            self.place = 'disk'
        else:
            self.place = agreed(lambda: choose_place(
                self._needs(sizes, place, processes), self.device, self.folder, 1. if place else .5))
        self.tables = [self._table(i, t, torch.Size(s), found) for i, (t, s) in enumerate(zip(kept, self.shapes))]
        self._reused: Dict[int, Tensor] = {}

    def _needs(self, sizes: Sequence[int], place: Optional[str], processes: int) -> Dict[str, int]:
        """Bytes that tables of these sizes take in every place that may be chosen."""
        gpu = self.device.type == 'cuda'
        # torch takes a power of two when it pins memory
        pinned = sum(1 << (size - 1).bit_length() if size else 0 for size in sizes) if gpu else self.nbytes
        needs = dict(device=self.nbytes * (1 if gpu else processes), host=pinned * processes, disk=self.nbytes)
        allowed = (place, ) if place else ('disk', ) if processes > 1 else PLACES
        return {key: needs[key] for key in allowed}

    def _table(self, number: int, dtype: torch.dtype, shape: torch.Size, found: bool) -> Tensor:
        if self.place == 'disk' and self.rows * shape.numel():
            return self._file(self.folder / f'{number}.bin', self.rows * shape.numel(), dtype, found).view(
                self.rows, *shape)
        if self.place == 'host':
            return torch.empty(self.rows, *shape, dtype=dtype, pin_memory=self.device.type == 'cuda')
        return torch.empty(self.rows, *shape, dtype=dtype, device='cpu' if self.place == 'disk' else self.device)

    def _file(self, path: Path, size: int, dtype: torch.dtype, found: bool) -> Tensor:
        """``size`` numbers in a file that is there, or is made."""
        length = size * dtype.itemsize
        # torch would write through a link, and fill up a file that is too short; 0: another process is making it
        if path.is_symlink() or (found or path.exists()) and not (
                path.is_file() and path.stat().st_size in ((length, ) if found else (0, length))):
            raise ValueError(f'{path} is no table of {size} numbers of type {dtype}' + ('' if found else (
                ': delete the folder, the features are computed again')))
        if not found:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                # The disk's blocks are taken now: written through a map, one too few would end the process.
                os.posix_fallocate(handle, 0, length)
            except OSError as error:
                error.filename = str(path)
                raise
            finally:
                os.close(handle)
        return torch.from_file(str(path), shared=not found, size=size, dtype=dtype)

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

    def sums(self, rows: Sequence[int]) -> List[int]:
        """A CRC-32 per row, over its bytes in all tables (which are not on a GPU)."""
        found = []
        for row in rows:
            crc = 0
            for table in self.tables:
                crc = zlib.crc32(table[row].reshape(-1).view(torch.uint8).numpy(), crc)
            found.append(crc)
        return found

    def is_like(self, indices: Sequence[int], features: Any) -> bool:
        """Whether what is kept of samples are these features, up to a thousandth, or 2 % in half precision:
        more than processors are thought to round differently, not measured."""
        for table, shape, leaf in zip(self.tables, self.shapes, pytree.tree_leaves(features)):
            kept = table[torch.as_tensor(indices)].double()
            new = leaf[:len(indices) * shape[0]].unflatten(0, (-1, shape[0])).to(table).double()
            tolerance = 1e-3 if leaf.dtype in (torch.float32, torch.float64) else 2e-2
            if not bool((kept - new).norm() <= tolerance * new.norm()):  # also where numbers are missing
                return False
        return True

    def finish(self, marker: Path, inputs: Sequence[str]) -> None:
        """Write files of a store on disk through to the disk, then ``marker`` (JSON) that says so, with the digests of
        the samples' ``inputs`` and a sum of every row."""
        # In this order: after a power cut a marker must not stand beside tables that never reached the disk.
        for file in sorted(self.folder.glob('*.bin')):
            with file.open('rb+') as f:
                os.fsync(f.fileno())
        with marker.open('w') as f:
            sums = self.sums(range(self.rows))
            json.dump(dict(rows=self.rows, shapes=self.shapes, inputs=list(inputs), sums=sums), f)
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
        self.backbone = backbone
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
