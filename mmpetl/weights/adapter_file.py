# SPDX-License-Identifier: Apache-2.0
"""The adapter file: what was trained, and what it was trained on, in one ``.safetensors``.

Tensors are stored under the model's own key names (``backbone.petl.0....``, ``head....``). A JSON header under the
metadata key ``mmpetl`` says which methods they belong to and which frozen weights they expect.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch

from ..names import plain_name
from ..version import __version__
from .atomic import atomic_write
from .errors import WeightFileError
from .fingerprint import fingerprint
from .guards import parse_json, read_safetensors_header
from .kinds import file_kind, read_tensors
from .reading import as_path

METADATA_KEY = 'mmpetl'
#: Metadata key of the SHA-256 of the header's text.
DIGEST_KEY = 'mmpetl_sha256'
#: Under this key the header travels in the ``_metadata`` of a state dict, which MMEngine and torch hand to the module
#: that loads.
STATE_KEY = 'mmpetl_adapter'
#: Version of the layout. A reader refuses a higher one and upgrades a lower one.
FORMAT = 1

#: Most patterns of tuned parameters in a header.
MAX_ITEMS = 100_000

#: Header keys: (type, required).
_FIELDS: dict[str, tuple[Any, bool]] = {
    'format': (int, True),
    'mmpetl_version': (str, True),
    'name': (str, True),
    'methods': (list, True),
    'tune': (list, True),
    'trunk': (str, True),
    'backbone': (str, True),
    'base': (dict, True),
    'counts': (dict, True),
    'checksum': (str, False),
    'head': (list, False),
    'model': (dict, False),
    'classes': ((list, type(None)), False),
    'preprocessing': ((dict, type(None)), False),
    'metrics': (dict, False),
    'versions': (dict, False),
    'extra': (dict, False),
}


def save(path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
    """Write an adapter file, atomically.

    Args:
        path (str | PathLike): Destination, ``*.safetensors``.
        tensors (Mapping[str, Tensor]): What was trained, under the model's key names.
        header (Mapping): Required: ``methods`` (list of config dicts), ``tune`` (list of patterns), ``trunk`` ('eval'
            or 'train'), ``backbone`` (type name), ``base`` (dict with id, checkpoint and fingerprint, each a string or
            None). Optional: ``name``, ``head`` (keys among the tensors that belong to the head), ``model``
            (widths, heads, parts: see :mod:`mmpetl.weights.belongs`), ``classes``,
            ``preprocessing``, ``metrics``, ``versions``, ``counts`` (numbers of trainable parameters: total, head,
            petl, ...), ``extra``. ``format``, ``mmpetl_version``, ``counts.stored`` (elements in the file, buffers
            included), ``checksum`` (:func:`~mmpetl.weights.fingerprint.fingerprint` of the tensors), and absent
            ``name`` and ``counts`` are filled in.

    Raises:
        WeightFileError: A header or a path that :func:`load` would refuse; nothing is written.
    """
    from safetensors.torch import save as to_bytes
    path = as_path(path)
    if not path.endswith('.safetensors'):
        raise WeightFileError(path, 'an adapter file is named *.safetensors', 'change the suffix')
    # A file without tensors would load on anything and change nothing.
    if not tensors:
        raise WeightFileError(path, 'no tensor to save', 'train something first')
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    stored = count(plain, header.get('head', []))
    # What trains is the caller's to say; what is stored is counted here, so that a reader can compare
    # it.
    counts = {**stored, **(header.get('counts') or {}), 'stored': stored['total']}
    full = {'format': FORMAT, 'mmpetl_version': __version__, 'name': 'default', **header, 'counts': counts,
            'checksum': fingerprint(plain)}
    try:
        # NaN is no JSON: other readers would refuse the file.
        text = json.dumps(full, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WeightFileError(path, f'the header cannot be written as JSON: {error}',
                              'use plain numbers, strings, lists') from None
    # As a reader will see it: what is written can be read.
    check_header(path, parse_json(text), {key: tuple(tensor.shape) for key, tensor in plain.items()})
    # clones: the safetensors library refuses tensors that share memory, adapters may tie theirs
    data = to_bytes({key: tensor.clone() for key, tensor in plain.items()},
                    {METADATA_KEY: text, DIGEST_KEY: hashlib.sha256(text.encode()).hexdigest()})
    atomic_write(path, lambda file: file.write(data))


def base_name(base: Mapping[str, Any]) -> str:
    """The base that a header names, for messages: its id or file in quotes, or words where it has neither."""
    name = base.get('id') or base.get('checkpoint')
    return repr(name) if name else 'weights that its model did not name'


def load(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read an adapter file.

    Returns:
        tuple: ``{key: Tensor}`` on the CPU and the checked header.

    Raises:
        FileNotFoundError: No such file.
        WeightFileError: Not an adapter file, damaged (one changed byte is noticed), written by a newer mmpetl, or a
            header that contradicts its tensors.
    """
    path = as_path(path)
    if file_kind(path) != 'safetensors':
        raise WeightFileError(path, 'not an adapter file', 'give a *.safetensors that mmpetl wrote')
    header = read_header(path)
    # Checked before the library opens the file, which trusts its header.
    entries, _ = read_safetensors_header(path, os.path.getsize(path))
    # copies: the safetensors library maps the file, so that what is written into it later would change the tensors
    tensors = {key: tensor.clone() for key, tensor in read_tensors(path, list(entries)).items()}
    # files of earlier versions have no checksum
    if header.get('checksum') not in (None, fingerprint(tensors)):
        raise WeightFileError(path, 'altered or damaged: its tensors differ from the checksum in its header',
                              'copy or download the file again')
    return tensors, header


def is_adapter(path: str) -> bool:
    """Whether a file is an adapter file.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightFileError: If it is no weight file.
    """
    return file_kind(path) == 'safetensors' and METADATA_KEY in read_safetensors_header(path, os.path.getsize(path))[1]


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check the header of an adapter file alone; no tensor is read.

    Raises:
        WeightFileError: As for :func:`load`.
    """
    path = os.path.expanduser(os.fspath(path))
    entries, metadata = read_safetensors_header(path, os.path.getsize(path))
    if METADATA_KEY not in metadata:
        raise WeightFileError(path, 'a safetensors file without adapter header', 'load it as backbone weights instead')
    if metadata.get(DIGEST_KEY) not in (None, hashlib.sha256(metadata[METADATA_KEY].encode()).hexdigest()):
        raise WeightFileError(path, 'altered or damaged: the adapter header differs from its SHA-256',
                              'copy or download the file again')
    try:
        header = parse_json(metadata[METADATA_KEY])
    except ValueError as error:
        raise WeightFileError(path, f'broken adapter header: {error}', 'save the adapter again') from None
    check_header(path, header, {key: shape for key, (_, shape) in entries.items()})
    return header


def count(tensors: Mapping[str, torch.Tensor], head: list[str]) -> dict[str, int]:
    """Number of elements stored: ``{'total', 'head', 'petl'}`` (petl = keys below ``backbone.petl.``)."""
    def total(keys: list[str]) -> int:
        return sum(tensors[key].numel() for key in keys)

    return {'total': total(list(tensors)), 'head': total([key for key in tensors if key in set(head)]),
            'petl': total([key for key in tensors if '.petl.' in f'.{key}'])}


def check_header(path: str, header: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check a header against its definition and against the tensors of its file.

    Args:
        path (str): Named in messages.
        header: Parsed JSON.
        shapes (Mapping): ``{key: shape}`` of the tensors in the file.

    Raises:
        WeightFileError: The first thing that is wrong.
    """
    def refuse(cause: str, mend: str = 'save the adapter again') -> None:
        raise WeightFileError(path, f'adapter header: {cause}', mend)

    # type and not isinstance: True is an int for Python.
    if not isinstance(header, dict) or type(header.get('format')) is not int:
        refuse('no format number')
    if not 1 <= header['format'] <= FORMAT:
        refuse(f'format {header["format"]}, this mmpetl {__version__} reads up to {FORMAT}', 'update mmpetl')
    for key, (kind, required) in _FIELDS.items():
        if required and key not in header:
            refuse(f'{key!r} is missing')
        if key in header and (not isinstance(header[key], kind) or isinstance(header[key], bool)):
            refuse(f'{key!r} is a {type(header[key]).__name__}')
    # A key that is not known may be one that matters; a newer layout has another format number.
    unknown = sorted(set(header) - set(_FIELDS))
    if unknown:
        refuse(f'unknown key {unknown[0]!r}', f"put it under 'extra'; known: {', '.join(_FIELDS)}")
    try:
        plain_name(header['name'], 'adapter name')
    except ValueError as error:
        refuse(str(error))
    _check_parts(header, shapes, refuse)


def _check_parts(header: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], refuse: Any) -> None:
    for method in header['methods']:
        if not isinstance(method, dict) or not isinstance(method.get('type'), str):
            refuse("every entry of 'methods' is a table with a 'type'")
    if len(header['tune']) > MAX_ITEMS or not all(
            isinstance(pattern, str) and len(pattern) <= 1000 for pattern in header['tune']):
        refuse("'tune' is a list of patterns")
    if not all(isinstance(name, (str, int)) for name in header.get('classes') or ()):
        refuse("'classes' is a list of names")
    for key in ('metrics', 'versions'):
        if not all(isinstance(value, (str, int, float, type(None))) for value in header.get(key, {}).values()):
            refuse(f"'{key}' is a table of plain values")
    if header['trunk'] not in ('eval', 'train'):
        refuse(f"'trunk' is {header['trunk']!r:.40}, not 'eval' or 'train'")
    for key in ('id', 'checkpoint', 'fingerprint'):
        value = header['base'].get(key)
        if value is not None and not isinstance(value, str):
            refuse(f"'base.{key}' is neither a string nor null")
    # It may be read as a path on the reader's machine.
    place = header['base'].get('checkpoint') or ''
    if '\0' in place or '..' in place.replace('\\', '/').split('/'):
        refuse(f"'base.checkpoint' {place[:60]!r} climbs out of its folder")
    counts = header['counts']
    if not all(type(value) is int and value >= 0 for value in counts.values()):
        refuse("'counts' holds something else than numbers of parameters")
    # The header was written for exactly these tensors.
    stored = sum(_prod(shape) for shape in shapes.values())
    if counts.get('stored') != stored:
        refuse(f"'counts.stored' is {counts.get('stored')}, the tensors hold {stored}")
    missing = sorted(set(header.get('head', [])) - set(shapes), key=str)
    if missing:
        refuse(f'head key {missing[0]!r:.80} is not among the tensors')


def _prod(shape: tuple[int, ...]) -> int:
    result = 1
    for extent in shape:
        result *= extent
    return result
