"""Convert a published weight file into one with OpenMMLab's key names: what ``tools/convert_weights.py`` does."""

import argparse
import io
import json
import os
from collections.abc import Sequence
from typing import Any

import torch

from ..version import __version__
from .convert import ALIASES, ARCHS, FORMATS, convert, detect
from .errors import WeightFileError
from .io import atomic_write, load_file
from .rename import State
from .report import Report

_SUFFIXES = ('.pth', '.safetensors')


def read_source(path: str | os.PathLike[str]) -> State:
    """State dict of any weight file, or the weights inside an ONNX export of DINOv2 or of a CLIP image tower.

    Raises:
        FileNotFoundError: No such file.
        ValueError: What is wrong with it, in one line.
    """
    path = os.path.expanduser(os.fspath(path))
    if not path.endswith('.onnx'):
        return dict(load_file(path)['state_dict'])
    from .onnx_reader import clip_visual_from_onnx, dinov2_from_onnx
    reasons = []
    for read in (dinov2_from_onnx, clip_visual_from_onnx):
        try:
            return dict(read(path))
        except WeightFileError as error:
            reasons.append(str(error).removeprefix(f'{path}: '))
    raise WeightFileError(path, '; '.join(dict.fromkeys(reasons)))


def natural_arch(state: State, as_name: str | None = None) -> str:
    """Architecture that a published file is made for."""
    name = ALIASES.get(as_name, as_name) if as_name else detect(state)
    if name in ('openai-clip', 'hf-clip'):
        return 'clip'
    if name not in FORMATS:
        return 'vit'  # convert() refuses the name
    family = FORMATS[name].family
    norm = any(key.endswith(('norm_pre.weight', 'pre_norm.weight')) for key in state)
    return 'clip' if family == 'vit' and norm else family


def config_target(path: str) -> tuple[str, dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Architecture, key shapes and patch grid of the backbone in a config.

    Raises:
        ValueError: The config's backbone is none of mmpetl's.
    """
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from ..backbones.attach import family_of
    from ..registry import MODELS
    config = Config.fromfile(path)
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    settings = {key: value for key, value in config.model.backbone.items() if key not in ('init_cfg', 'petl', 'tune')}
    kind = settings['type']
    if not str(kind).startswith('mmpetl.'):
        raise ValueError(f'{path}: the backbone is {kind!r}, not one of mmpetl')
    backbone: Any = MODELS.build(settings)
    shapes = {key: tuple(value.shape) for key, value in backbone.state_dict().items() if not key.startswith('petl.')}
    arch, family = family_of(backbone)
    if arch == 'vit' and 'pre_norm.weight' in shapes:
        arch = 'clip'
    return arch, shapes, tuple(family.specs(backbone)[0].grid)


def write_converted(path: str, state: State, report: Report, source: str, head: str | None = None) -> None:
    """Write a converted state dict under ``backbone.``, atomically.

    Args:
        path (str): ``*.pth`` or ``*.safetensors``.
        state (dict): Tensors under the backbone's names.
        report (Report): Its match report; in its extras, a CLIP projection becomes ``neck.proj``, and register
            tokens are written under their own name.
        source (str): File that it came from, noted by name in the output.
        head (str | None): Prefix under which the file's classifier is written, such as ``cls_head.fc_cls``; None leaves it out.

    Raises:
        WeightFileError: The file has no classifier to write as head.
    """
    full = {f'backbone.{key}': tensor.contiguous() for key, tensor in state.items()}
    for name, key in (('proj', 'neck.proj'), ('register_tokens', 'register_tokens')):
        if name in report.extras:
            full[key] = report.extras[name].contiguous()
    if head is not None:
        parts = {key: tensor for key, tensor in report.extras.items() if key.startswith('head.')}
        if not parts:
            raise WeightFileError(source, 'has no classifier to write', 'leave --head out')
        full |= {f'{head}.{key.removeprefix("head.")}': tensor.contiguous() for key, tensor in parts.items()}
    meta = {'mmpetl_version': __version__, 'converted_from': os.path.basename(source), 'format': report.source, 'arch': report.arch}
    if path.endswith('.safetensors'):
        from safetensors.torch import save
        data = save({key: tensor.clone() for key, tensor in full.items()}, {'format': 'pt', 'converted': json.dumps(meta)})
    else:
        buffer = io.BytesIO()
        torch.save({'state_dict': full, 'meta': meta}, buffer)
        data = buffer.getvalue()
    atomic_write(path, lambda file: _write(file, data))


def _write(file: Any, data: bytes) -> None:
    file.write(data)


def main(argv: Sequence[str]) -> Report:
    """Command line; prints the match report."""
    parser = argparse.ArgumentParser(
        prog='tools/convert_weights.py', description='Convert published weights to the key names of mmpretrain and mmaction2.',
        epilog=f'formats: {", ".join(FORMATS)}; also known as: {", ".join(f"{a} ({b})" for a, b in ALIASES.items())}')
    parser.add_argument('src', help='weight file: torch, TorchScript, safetensors, npz or onnx')
    parser.add_argument('dst', help='*.pth or *.safetensors')
    parser.add_argument('--as', dest='as_name', metavar='NAME', help='format of SRC; found out by default')
    parser.add_argument('--arch', choices=sorted(ARCHS), help='architecture of DST; by default the one that SRC is made for')
    parser.add_argument('--config', help='config whose backbone gives key names and shapes: to resize tables or to inflate')
    parser.add_argument('--head', metavar='PREFIX', help="also write SRC's classifier, as PREFIX.weight and PREFIX.bias")
    parser.add_argument('--debug', action='store_true', help='show tracebacks')
    args = parser.parse_args(argv)
    if not args.dst.endswith(_SUFFIXES):
        raise WeightFileError(args.dst, 'unknown output format', f'name it {" or ".join("*" + suffix for suffix in _SUFFIXES)}')
    if os.path.exists(args.dst) and os.path.samefile(args.src, args.dst):
        raise WeightFileError(args.dst, 'is the source itself', 'name another output')
    state = read_source(args.src)
    arch, shapes, grid = args.arch, None, None
    if args.config:
        arch, shapes, grid = config_target(args.config)
        if args.arch and args.arch != arch:
            raise ValueError(f'{args.config}: its backbone is {arch!r}, --arch says {args.arch!r}')
    converted, report = convert(state, shapes, arch or natural_arch(state, args.as_name), args.as_name, grid)
    write_converted(args.dst, converted, report, args.src, args.head)
    print(report)
    print(f'wrote {args.dst}: {len(converted)} tensors, {sum(t.numel() for t in converted.values()):,} numbers')
    return report
