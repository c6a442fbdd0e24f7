# SPDX-License-Identifier: Apache-2.0
"""Opening any weight file safely; nothing in a file is ever executed."""

import os
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from . import adapter_file
from .atomic import atomic_write, write_json
from .errors import WeightFileError
from .fingerprint import fingerprint
from .guards import parse_json, read_safetensors_header
from .kinds import file_kind, read_tensors
from .reading import read_arrays
from .safe_pickle import load_pickle
from .torchscript import load_torchscript

__all__ = [
    'FINGERPRINT_KEY', 'WeightFileError', 'atomic_write', 'file_kind', 'file_size', 'load_file', 'normalise',
    'read_tensors', 'write_json'
]

#: Metadata of a ``.safetensors`` file: the fingerprint of its tensors, checked whenever they are read.
FINGERPRINT_KEY = 'mmpetl_fingerprint'


def load_file(path: str | os.PathLike[str], map_location: Any = 'cpu') -> dict[str, Any]:
    """Open a weight file of any known kind; nothing inside it is ever executed.

    Args:
        path (str | PathLike): Torch zip or legacy pickle, TorchScript archive, ``.safetensors``, ``.npz`` or adapter
            file.
        map_location: As for :func:`torch.load`. Callables and None leave the formats without devices on the CPU.

    Returns:
        dict: ``{'state_dict': {key: Tensor}, ...}``. A checkpoint's other entries are kept as they are. An adapter file
            also has
        ``'meta'``, its header, which the state dict carries along in ``_metadata['backbone']['mmpetl_adapter']``.

    Raises:
        FileNotFoundError: No such file.
        WeightFileError: Anything else that is wrong, in one line.
    """
    path = os.path.expanduser(os.fspath(path))
    kind = file_kind(path)
    size = os.path.getsize(path)
    if kind == 'safetensors':
        return _load_safetensors(path, size, map_location)
    if kind == 'npz':
        return {'state_dict': _placed(_load_npz(path), map_location)}
    if kind == 'torchscript':
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        return {'state_dict': _placed(load_torchscript(path, names), map_location)}
    return normalise(load_pickle(path, map_location, size), path)


def normalise(loaded: Any, path: str = 'state dict') -> dict[str, Any]:
    """Bring ``{'model': ...}``, ``{'module': ...}`` or a bare state dict into the form ``{'state_dict': ...}``.

    Other entries (optimizer, message hub, meta, epoch, ...) stay as they are.

    Raises:
        WeightFileError: The object holds no state dict.
    """
    if not isinstance(loaded, Mapping):
        raise WeightFileError(path, f'holds a {type(loaded).__name__}, not a state dict', 're-save its state_dict()')
    # What MMEngine writes is the form to which all others are brought.
    if isinstance(loaded.get('state_dict'), Mapping):
        return dict(loaded)
    # MAE and DeiT say 'model', DeepSpeed 'module'.
    for name in ('model', 'module'):
        if isinstance(loaded.get(name), Mapping):
            return {'state_dict': loaded[name], **{key: value for key, value in loaded.items() if key != name}}
    if loaded and all(isinstance(value, torch.Tensor) for value in loaded.values()):
        return {'state_dict': loaded}
    tensors = OrderedDict((key, value) for key, value in loaded.items() if isinstance(value, torch.Tensor))
    if tensors:
        return {'state_dict': tensors, **{key: value for key, value in loaded.items() if key not in tensors}}
    raise WeightFileError(path, f'no state dict among its entries {sorted(map(str, loaded))[:8]}',
                          're-save its state_dict()')


def _load_safetensors(path: str, size: int, map_location: Any) -> dict[str, Any]:
    entries, metadata = read_safetensors_header(path, size)
    if adapter_file.METADATA_KEY in metadata:
        tensors, header = adapter_file.load(path)
        state = OrderedDict(_placed(tensors, map_location))
        state._metadata = OrderedDict(backbone=dict(mmpetl_adapter=header))  # type: ignore[attr-defined]
        return {'state_dict': state, 'meta': header}
    plain = read_tensors(path, list(entries))
    # Written by others there is none, and nothing is compared.
    if metadata.get(FINGERPRINT_KEY) not in (None, fingerprint(plain)):
        raise WeightFileError(path, 'altered or damaged: its tensors differ from the fingerprint that it carries',
                              'download or make the file again')
    loaded: dict[str, Any] = {'state_dict': _placed(plain, map_location)}
    if 'meta' in metadata:  # of a merged model, as a .pth has it
        try:
            meta = parse_json(metadata['meta'])
        except ValueError:  # somebody else's text
            meta = None
        if isinstance(meta, dict):
            loaded['meta'] = meta
    return loaded


def _load_npz(path: str) -> 'OrderedDict[str, torch.Tensor]':
    """Arrays of an ``.npz`` as tensors; object arrays (which would need pickle) are refused, text arrays are left
    out."""
    try:
        arrays = read_arrays(path)
    except WeightFileError:
        raise
    except ValueError as error:
        raise WeightFileError(path, str(error).removeprefix(f'{path}: ')) from None
    return OrderedDict((name, torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape))
                       # Floats, integers, unsigned, booleans; texts are notes.
                       for name, array in arrays.items() if array.dtype.kind in 'fiub')


def _placed(tensors: Mapping[str, torch.Tensor], map_location: Any) -> 'OrderedDict[str, torch.Tensor]':
    if isinstance(map_location, (str, torch.device)):
        return OrderedDict((key, tensor.to(map_location)) for key, tensor in tensors.items())
    return OrderedDict(tensors)


def file_size(path: str) -> str:
    """Size of a file for people: ``'0.93 MB'``, below a tenth of that ``'4 kB'``."""
    size = os.path.getsize(path)
    return f'{size / 1e6:.2f} MB' if size >= 1e5 else f'{max(size / 1e3, 1):.0f} kB'
