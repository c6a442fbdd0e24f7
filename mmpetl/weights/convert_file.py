# SPDX-License-Identifier: Apache-2.0
"""Reading published weight files of any kind and writing them with OpenMMLab's key names."""

import io
import json
import os

import torch

from ..version import __version__
from .archs import ALIASES, ARCHS, FORMATS
from .convert import detect
from .errors import WeightFileError
from .io import atomic_write, load_file
from .match_report import Report
from .rename import State

#: Suffixes of the files that :func:`write_converted` writes.
SUFFIXES = ('.pth', '.safetensors')


def read_source(path: str | os.PathLike[str]) -> State:
    """State dict of any weight file, or the weights inside an ONNX export of DINOv2 or of a CLIP image tower.

    Raises:
        FileNotFoundError: No such file.
        ValueError: What is wrong with it, in one line.
    """
    path = os.path.expanduser(os.fspath(path))
    if not path.endswith('.onnx'):
        return dict(load_file(path)['state_dict'])
    # onnx is an extra; other files need nothing of it.
    from .onnx_reader import clip_visual_from_onnx, dinov2_from_onnx
    reasons = []
    # Graphs carry no name of the model: whoever recognises it, reads it.
    for read in (dinov2_from_onnx, clip_visual_from_onnx):
        try:
            return dict(read(path))
        except WeightFileError as error:
            reasons.append(str(error).removeprefix(f'{path}: '))
    raise WeightFileError(path, '; '.join(dict.fromkeys(reasons)))


def natural_arch(state: State, as_name: str | None = None) -> str:
    """Architecture that a published file is made for."""
    name = ALIASES.get(as_name, as_name) if as_name else detect(state)
    if name not in FORMATS:
        return next(iter(ARCHS))  # convert() refuses the name
    return FORMATS[name].made_for(state)


def write_converted(path: str, state: State, report: Report, source: str, head: str | None = None) -> None:
    """Write a converted state dict under ``backbone.``, atomically.

    Args:
        path (str): ``*.pth`` or ``*.safetensors``.
        state (dict): Tensors under the backbone's names.
        report (Report): Its match report; in its extras, a CLIP projection becomes ``neck.proj``, and register
            tokens become the prompts of a shallow VPT named ``registers``.
        source (str): File that it came from, noted by name in the output.
        head (str | None): Prefix under which the file's classifier is written, such as ``cls_head.fc_cls``; None leaves
            it out.

    Raises:
        WeightFileError: The file has no classifier to write as head.
    """
    # As a whole OpenMMLab model has it, so that load_from works as well as init_cfg.
    full = {f'backbone.{key}': tensor.contiguous() for key, tensor in state.items()}
    if 'proj' in report.extras:
        full['neck.proj'] = report.extras['proj'].contiguous()
    # As prompts of a shallow VPT they do exactly what they did, see take_registers.
    if 'register_tokens' in report.extras:
        full['backbone.petl.registers.prompts.0'] = report.extras['register_tokens'][0].contiguous()
    if head is not None:
        parts = {key: tensor for key, tensor in report.extras.items() if key.startswith('head.')}
        if not parts:
            raise WeightFileError(source, 'has no classifier to write', 'leave --head out')
        full |= {f'{head}.{key.removeprefix("head.")}': tensor.contiguous() for key, tensor in parts.items()}
    meta = {
        'mmpetl_version': __version__,
        'converted_from': os.path.basename(source),
        'format': report.source,
        'arch': report.arch
    }
    if path.endswith('.safetensors'):
        from safetensors.torch import save
        data = save({
            # The safetensors library refuses tensors that share memory.
            key: tensor.clone()
            for key, tensor in full.items()
        }, {
            'format': 'pt',
            'converted': json.dumps(meta)
        })
    else:
        buffer = io.BytesIO()
        torch.save({'state_dict': full, 'meta': meta}, buffer)
        data = buffer.getvalue()
    atomic_write(path, lambda file: file.write(data))
