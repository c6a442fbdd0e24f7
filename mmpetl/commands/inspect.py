# SPDX-License-Identifier: Apache-2.0
"""What any weight file holds: mmpetl inspect."""

import argparse
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor

from ..names import printable
from ..weights import convert, detect, fingerprint
from ..weights.adapter_file import base_name
from ..weights.archs import ARCHS, FORMATS
from ..weights.convert_file import natural_arch, read_source
from ..weights.hub import is_hub, is_peft, local_path
from ..weights.io import file_kind, load_file


def inspect_file(path: str, config: str = '') -> Dict[str, Any]:
    """Describe a weight file; nothing in it is executed.

    Args:
        path: Checkpoint, adapter file, folder of peft, published weights (torch, TorchScript, safetensors, npz, onnx),
            or ``hf://user/repo`` for an adapter on the hub.
        config: Config whose backbone the weights are tried on.

    Returns:
        ``path``, ``bytes``, ``kind`` (of the file), ``content`` ('adapter', 'adapter checkpoint', 'training
        checkpoint', 'weights'), ``tensors``, ``numbers``, ``dtypes``, ``fingerprint``, ``parts`` (numbers per part),
        ``entries`` (what else it holds), ``header`` (of an adapter), ``format`` (published naming, or None), ``fits``
        (list of backbones), and with ``config`` its ``report``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no weight file, or does not fit the config.
    """
    # what costs seconds to import waits until the file was read
    named, path = path, local_path(path)
    found: Dict[str, Any] = dict(path=named if is_hub(named) else path, bytes=0, kind='onnx')
    settings: Dict[str, Any] = {}
    if is_peft(path):
        from ..adapters.peft_folder import read_folder, tensor_file
        settings = {f'peft: {k}': _short(v) for k, v in read_folder(path)[0].items() if v not in (None, {}, [], '')}
        folder, path = path, tensor_file(path)
    if path.endswith('.onnx') and os.path.isfile(path):
        loaded: Dict[str, Any] = dict(state_dict=read_source(path))
    else:
        found['kind'] = file_kind(path)
        loaded = load_file(path)
    found['bytes'] = os.path.getsize(path)
    state = {k: v for k, v in loaded['state_dict'].items() if isinstance(v, Tensor)}
    from ..adapters.files import header_of
    header = header_of(loaded)
    if header is not None and 'merged' in header:
        header = None  # a whole model, which says what was merged into it
    found.update(
        content=_content(found['kind'], loaded, header),
        tensors=len(state),
        numbers=sum(t.numel() for t in state.values()),
        dtypes={
            k: n
            for k, n in Counter(str(t.dtype).removeprefix('torch.') for t in state.values()).most_common()
        },
        fingerprint=fingerprint(state),
        parts=_parts(state),
        not_finite=_not_finite(state),
        entries={
            k: _short(v)
            for k, v in loaded.items() if k != 'state_dict' and v is not header
        } | settings,
        header=header)
    base = {k: v for k, v in state.items() if '.petl.' not in f'.{k}'}
    found['format'], found['fits'] = _fits(base, header)
    if config:
        found['report'] = _try(state, header, config) if not settings else _try_peft(folder, config)
    return found


def _content(kind: str, loaded: Mapping[str, Any], header: Any) -> str:
    if header is not None:
        return 'adapter' if kind == 'safetensors' else 'adapter checkpoint'
    return 'training checkpoint' if 'optimizer' in loaded or 'message_hub' in loaded else 'weights'


def _parts(state: Mapping[str, Tensor]) -> Dict[str, int]:
    """Numbers per part of the model: each method, the backbone, and every other first word of the names."""
    parts: Counter = Counter()
    for key, tensor in state.items():
        words = key.replace('/', '.').split('.')
        at = words.index('petl') if 'petl' in words[:-1] else None
        parts['.'.join(words[:at + 2]) if at is not None else words[0]] += tensor.numel()
    ranked = parts.most_common()
    shown = dict(ranked[:12])
    if len(ranked) > 12:
        shown[f'{len(ranked) - 12} more'] = sum(n for _, n in ranked[12:])
    return shown


def _not_finite(state: Mapping[str, Tensor]) -> List[str]:
    return [k for k, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]


def _fits(base: Mapping[str, Tensor], header: Any) -> Tuple[Any, List[str]]:
    from ..backbones.family import TYPE_OF_ARCH, TYPES_OF_CLASS
    if header is not None:
        return None, [f'{TYPES_OF_CLASS.get(header["backbone"], header["backbone"])} on {base_name(header["base"])}']
    try:
        name = detect(base)
    except ValueError:
        return None, []
    own = natural_arch(dict(base))
    others = [a for a, arch in ARCHS.items() if FORMATS[name].family in arch.families[1:]]
    return name, [TYPE_OF_ARCH[own], *(f'{TYPE_OF_ARCH[a]} (inflated to video)' for a in others)]


def _try_peft(folder: str, config: str) -> str:
    """Match of a folder of peft with a config's model, without methods.

    Raises:
        ValueError: Says what does not fit.
    """
    from ..adapters.peft_folder import open_peft
    from ..training.build import build_model, read_config
    opened = open_peft(build_model(read_config(config, {'model.backbone.petl': []}), weights=False), folder)
    kinds = ', '.join(dict.fromkeys(method['type'] for method in opened.methods)) or 'tuned parameters'
    return f'the folder of peft fits the model of {config}: {kinds}'


def _try(state: Mapping[str, Tensor], header: Any, config: str) -> str:
    """Match of weights with a config's backbone, or of an adapter with its methods.

    Raises:
        ValueError: Says what does not fit.
    """
    from .convert import config_target
    if header is None:
        arch, shapes, grid = config_target(config)
        return str(convert(state, shapes, arch, grid=grid)[1])
    from ..adapters.facts import check_adapter, config_facts
    from ..costs.memory import on_meta
    from ..training.build import build_model, read_config
    cfg = read_config(config)
    with on_meta():
        model = build_model(cfg, weights=False)
    check_adapter(model, header, config, **config_facts(cfg))
    own = model.state_dict()
    for key, tensor in state.items():
        if key not in own:
            raise ValueError(f'{config}: the model has no {key}, which the adapter holds')
        if own[key].shape != tensor.shape:
            raise ValueError(
                f'{config}: {key} has shape {tuple(own[key].shape)} in the model, {tuple(tensor.shape)} in the adapter')
    missing = [k for k in own if '.petl.' in k and k not in state]
    if missing:
        raise ValueError(f'{config}: the adapter has no {missing[0]}, which the model needs')
    return f'{len(state)} tensors fit the model of {config}'


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return f'{len(value)} entries: {", ".join(map(str, list(value)[:8]))}' if value else 'empty'
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)[:100] if isinstance(value, str) else type(value).__name__


def describe(found: Mapping[str, Any]) -> str:
    """The facts as lines for a terminal."""
    formats = ', '.join(f'{n} {k}' for k, n in found['dtypes'].items())
    rows: List[Tuple[str, Any]] = [('file', f'{found["path"]} ({found["bytes"]:,} bytes, {found["kind"]})'),
                                   ('content', found['content']),
                                   ('tensors', f'{found["tensors"]:,} ({formats}), {found["numbers"]:,} numbers'),
                                   ('fingerprint', found['fingerprint'])]
    header = found['header']
    if header is not None:
        base = header['base']
        rows += [('name', header['name']),
                 ('format', f'{header["format"]}, written by mmpetl {header["mmpetl_version"]}')]
        rows += [('method', json.dumps(m)) for m in header['methods']] or [('method', 'none')]
        rows += [('tune', ', '.join(header['tune']) or 'nothing'), ('trunk', header['trunk']),
                 ('backbone', header['backbone']),
                 ('base', f'{base_name(base)}, fingerprint {base.get("fingerprint") or "unknown"}'),
                 ('counts', ', '.join(f'{k} {n:,}' for k, n in header['counts'].items()))]
        rows += [('classes', f'{len(header["classes"])}: {", ".join(map(str, header["classes"]))}')
                 ] if header.get('classes') else []
        rows += [('metrics', ', '.join(f'{k} {v:g}' if isinstance(v, (int, float)) else f'{k} {v}'
                                       for k, v in header['metrics'].items()))] if header.get('metrics') else []
        rows += [('versions', ', '.join(f'{k} {v}'
                                        for k, v in header['versions'].items()))] if header.get('versions') else []
    else:
        rows += [('format', found['format'] or 'none of the published ones')]
    rows += [('fits', text) for text in found['fits']] or [('fits', 'no backbone of mmpetl, as far as the names tell')]
    rows += [('part', f'{name:<40} {number:>14,}') for name, number in found['parts'].items()]
    rows += [('entry', f'{name}: {value}') for name, value in found['entries'].items()]
    rows += [
        ('WARNING', f'{len(found["not_finite"])} tensors hold NaN or infinity: {", ".join(found["not_finite"][:3])}')
    ] if found['not_finite'] else []
    rows += [('report', found['report'])] if 'report' in found else []
    return '\n'.join(f'{name:<12} {shown}' for name, value in rows for shown in map(printable, str(value).splitlines()))


def run(args: argparse.Namespace) -> None:
    """Print the description."""
    with contextlib.redirect_stdout(sys.stderr):  # building a model may log
        found = inspect_file(args.file, args.config)
    print(json.dumps(found, indent=2) if args.json else describe(found))
