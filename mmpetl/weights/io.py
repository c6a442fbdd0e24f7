"""Opening any weight file safely, and writing files that are never half there.

Suffix and content decide together: the first bytes say what a file is, and a suffix that promises a format without
pickle (``.safetensors``, ``.npz``) is held to its promise.
"""

import difflib
import json
import os
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch

from .errors import WeightFileError
from .guards import check_zip, read_safetensors_header
from .safe_pickle import load_pickle
from .torchscript import load_torchscript

__all__ = ['WeightFileError', 'atomic_write', 'file_kind', 'load_file', 'normalise', 'write_json']

_FOREIGN = {
    b'version https://git-lfs': 'a Git LFS pointer, not the file itself',
    b'<!DOCTYPE': 'an HTML page',
    b'<html': 'an HTML page',
    b'\x1f\x8b': 'a gzip archive',
    b'\x89HDF': 'an HDF5 file',
    b'\x93NUMPY': 'a single array (.npy)',
    b'{': 'a JSON text',
}


def file_kind(path: str) -> str:
    """Say what a weight file is: ``'torch'``, ``'legacy'``, ``'torchscript'``, ``'safetensors'`` or ``'npz'``.

    Args:
        path (str): An existing file.

    Raises:
        FileNotFoundError: No such file; the message names the nearest one.
        WeightFileError: Empty, foreign or hostile content, or a suffix that promises another format.
    """
    _check_exists(path)
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        head = file.read(32)
    if not head:
        raise WeightFileError(path, 'empty file', 'download or copy it again')
    kind = _kind_of_bytes(path, head, size)
    suffix = os.path.splitext(path)[1].lower()
    if suffix in ('.safetensors', '.npz') and kind != suffix[1:]:
        raise WeightFileError(path, f'the name says {suffix}, the content is a {kind} file',
                              'give it the suffix of its content')
    return kind


def _kind_of_bytes(path: str, head: bytes, size: int) -> str:
    if head[:4] == b'PK\x03\x04':
        names = check_zip(path, size)
        tops = {name.split('/', 1)[1] if '/' in name else name for name in names}
        if 'data.pkl' in tops and 'constants.pkl' in tops:
            return 'torchscript'
        if 'data.pkl' in tops:
            return 'torch'
        if names and all(name.endswith('.npy') for name in names):
            return 'npz'
        raise WeightFileError(path, 'a zip archive without weights', 'give the weight file inside it')
    if size > 8 and head[8:9] == b'{':
        return 'safetensors'
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise WeightFileError(path, f'{what}, not a weight file',
                                  'give a .pth, .pt, .bin, .safetensors or .npz file')
    if head[:1] == b'\x80' and head[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05'):
        return 'legacy'
    if b'PK' == head[:2] or os.path.splitext(path)[1].lower() in ('.safetensors', '.npz'):
        raise WeightFileError(path, 'damaged or truncated file', 'download or copy it again')
    raise WeightFileError(path, 'not a weight file', 'give a .pth, .pt, .bin, .safetensors or .npz file')


def _check_exists(path: str) -> None:
    if os.path.isfile(path):
        return
    if os.path.isdir(path):
        raise WeightFileError(path, 'a folder, not a weight file', 'name the file inside it')
    folder, name = os.path.split(os.path.abspath(path))
    near = difflib.get_close_matches(name, os.listdir(folder) if os.path.isdir(folder) else [], n=1)
    hint = f'; did you mean {near[0]}?' if near else (
        '' if os.path.isdir(folder) else f'; folder {folder} does not exist either')
    raise FileNotFoundError(f'{path}: no such weight file{hint}')


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
    if isinstance(loaded.get('state_dict'), Mapping):
        return dict(loaded)
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
    from . import adapter_file
    entries, metadata = read_safetensors_header(path, size)
    if adapter_file.METADATA_KEY in metadata:
        tensors, header = adapter_file.load(path)
        state = OrderedDict(_placed(tensors, map_location))
        state._metadata = OrderedDict(backbone=dict(mmpetl_adapter=header))  # type: ignore[attr-defined]
        return {'state_dict': state, 'meta': header}
    return {'state_dict': _placed(read_tensors(path, list(entries)), map_location)}


def read_tensors(path: str, keys: list[str]) -> 'OrderedDict[str, torch.Tensor]':
    """Read tensors of a safetensors file whose header was checked.

    Raises:
        WeightFileError: The safetensors library refuses the file.
    """
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, framework='pt') as file:
            return OrderedDict((key, file.get_tensor(key)) for key in keys)
    except (SafetensorError, OSError, AttributeError) as error:
        raise WeightFileError(path, f'damaged safetensors file: {error}', 'download or copy the file again') from None


def _load_npz(path: str) -> 'OrderedDict[str, torch.Tensor]':
    """Arrays of an ``.npz`` as tensors; object arrays (which would need pickle) are refused, text arrays are left
    out."""
    tensors: OrderedDict[str, torch.Tensor] = OrderedDict()
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix('.npy')
            try:
                with archive.open(member) as file:
                    shape, _, dtype = _npy_header(file)
                    if dtype.hasobject:
                        raise ValueError('an object array, which only pickle could read')
                    if int(np.prod(shape, dtype=object)) * dtype.itemsize > member.file_size:
                        raise ValueError(f'shape {shape} does not fit its {member.file_size} bytes')
                with archive.open(member) as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
            except Exception as error:  # zipfile, zlib and numpy raise their own types
                raise WeightFileError(path, f'refused or damaged array {name!r}: {error}', 'nothing was run') from None
            if array.dtype.kind in 'fiub':
                tensors[name] = torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)
    return tensors


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f'.npy version {version}, which no plain array uses')


def _placed(tensors: Mapping[str, torch.Tensor], map_location: Any) -> 'OrderedDict[str, torch.Tensor]':
    if isinstance(map_location, (str, torch.device)):
        return OrderedDict((key, tensor.to(map_location)) for key, tensor in tensors.items())
    return OrderedDict(tensors)


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that at every moment the old content or the new one is there, never a part.

    Args:
        path (str | PathLike): Destination; missing folders are made. A link is followed, its target replaced.
        write (Callable[[BinaryIO], Any]): Writes the whole content into the open binary file that it is given.
    """
    target = os.path.realpath(os.path.expanduser(os.fspath(path)))
    folder, name = os.path.split(target)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f'.{name[:100]}.', suffix='.part', dir=folder)
    try:
        with os.fdopen(handle, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _mode(target: str) -> int:
    """Permissions of the file to be replaced, or those that ``open`` would give a new one (mkstemp gives 0600)."""
    if os.path.exists(target):
        return os.stat(target).st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: str) -> None:
    """Make the rename itself survive a power cut, where the system lets folders be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write ``obj`` as indented JSON, atomically; a value JSON cannot hold is a TypeError or ValueError and writes
    nothing."""
    data = (json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + '\n').encode()
    atomic_write(path, lambda file: file.write(data))
