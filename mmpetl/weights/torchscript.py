# SPDX-License-Identifier: Apache-2.0
"""Tensors of a TorchScript archive, read without running the code that it carries.

``torch.jit.load`` compiles and may run the archive's own code. Its weights need none of that: ``data.pkl`` describes
the module tree, ``data/N`` holds one storage each. The tree is rebuilt here as plain dictionaries; no name from the
archive is ever imported.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import torch

from .errors import WeightFileError

_STORAGE = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
}
_LISTS = ('build_intlist', 'build_tensorlist', 'build_doublelist', 'build_boollist')


class _Node:
    """One object of the archive: its attributes, whatever class the archive gave it."""

    def __init__(self) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Pending:
    """A storage named in ``data.pkl`` and not read yet."""

    def __init__(self, key: str, dtype: torch.dtype, numel: int) -> None:
        self.key, self.dtype, self.numel = key, dtype, numel


class _Reader(pickle._Unpickler):  # type: ignore[misc,name-defined]
    """Unpickler whose ``find_class`` imports nothing: it gives out the few functions defined here, or refuses.

    The Python version of the unpickler: the C one reserves memory for whatever memo index the file asks for.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f'{root}/data.pkl'))
        self.archive, self.root = archive, root
        self.storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split('.')[0] == '__torch__':
            return _Node
        if module == 'torch._utils' and name in ('_rebuild_tensor', '_rebuild_tensor_v2'):
            return self.rebuild
        if module == 'torch._utils' and name == '_rebuild_parameter':
            return self.first
        if module == 'torch' and name in _STORAGE:
            return _STORAGE[name]
        if module == 'torch.jit._pickle' and name in _LISTS:
            return self.first
        if module == 'torch.jit._pickle' and name == 'restore_type_tag':
            return self.first
        if (module, name) == ('collections', 'OrderedDict'):
            return OrderedDict
        raise pickle.UnpicklingError(f'{module}.{name}')

    def first(self, value: Any, *_: Any) -> Any:
        """Give back the first argument: what a type tag, a list or a parameter wraps."""
        return value

    def persistent_load(self, pid: Any) -> _Pending:
        kind, dtype, key, _, numel = pid
        if kind != 'storage' or not isinstance(dtype, torch.dtype) or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError(f'storage {pid!r:.80}')
        return _Pending(str(key), dtype, numel)

    def rebuild(self, pending: _Pending, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_:
                Any) -> torch.Tensor:
        """Tensor of ``shape`` over the storage, after comparing the claim with the bytes present."""
        flat = self.storages.get(pending.key)
        if flat is None:
            item = torch.empty((), dtype=pending.dtype).element_size()
            # check_zip has compared what it would become with the size of the file.
            raw = self.archive.read(f'{self.root}/data/{pending.key}')
            if len(raw) < pending.numel * item:
                raise ValueError(f'storage {pending.key} has {len(raw)} bytes, {pending.numel * item} announced')
            flat = torch.empty(0, dtype=pending.dtype)
            if pending.numel:
                # bytearray: torch would warn of tensors over read-only memory.
                flat = torch.frombuffer(bytearray(raw), dtype=pending.dtype, count=pending.numel)
            self.storages[pending.key] = flat
        shape, stride = tuple(shape), tuple(stride)
        # A negative stride would read in front of the storage.
        if any(type(value) is not int or value < 0 for value in (*shape, *stride, offset)) or len(shape) != len(stride):
            raise ValueError('a tensor has an impossible shape')
        # The furthest element that the claim would touch.
        last = offset + sum((extent - 1) * step for extent, step in zip(shape, stride)) if math.prod(shape) else 0
        if last >= max(flat.numel(), 1) or math.prod(shape) > max(flat.numel(), 1):
            raise ValueError(f'a tensor of shape {shape} does not fit its storage of {flat.numel()} elements')
        return torch.as_strided(flat, shape, stride, offset)


def _collect(node: Any, prefix: str, found: 'OrderedDict[str, torch.Tensor]', busy: set[int]) -> None:
    state = node.state if isinstance(node, _Node) else node
    if not isinstance(state, dict) or id(state) in busy:
        return
    busy.add(id(state))
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            found[f'{prefix}{name}'] = value
        elif isinstance(value, (_Node, dict)):
            _collect(value, f'{prefix}{name}.', found, busy)
    # A module may stand at two places, but not inside itself.
    busy.discard(id(state))


def load_torchscript(path: str, names: list[str]) -> 'OrderedDict[str, torch.Tensor]':
    """Read the parameters and buffers of a TorchScript archive.

    Args:
        path (str): The archive, already checked by :func:`mmpetl.weights.guards.check_zip`.
        names (list[str]): Its members.

    Returns:
        OrderedDict[str, Tensor]: Names as ``module.state_dict()`` would give them, CPU tensors.

    Raises:
        WeightFileError: An archive that names anything but modules and tensors, or whose storages are too short.
    """
    # The folder in the archive has the name of whatever was saved.
    root = next(name for name in names if name.count('/') == 1 and name.endswith('/data.pkl')).split('/')[0]
    try:
        with zipfile.ZipFile(path) as archive:
            tree = _Reader(archive, root).load()
        found: OrderedDict[str, torch.Tensor] = OrderedDict()
        _collect(tree, '', found, set())
    except pickle.UnpicklingError as error:
        raise WeightFileError(path, f'refused: the TorchScript archive asks for {error}', 'nothing was run') from None
    except Exception as error:  # pickle.Unpickler raises nearly any type on damaged input
        raise WeightFileError(path, f'damaged TorchScript archive: {type(error).__name__}: {error}',
                              'download or copy the file again') from None
    return found
