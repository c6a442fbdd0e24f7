# SPDX-License-Identifier: Apache-2.0
"""A trained model for other runtimes and libraries: mmpetl export."""

import argparse
import contextlib
import os
import sys
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from ..adapters.peft_folder import KINDS, save_peft
from ..backbones.family import FAMILIES
from ..merging import MergeReport, merge, probe_for
from ..training.build import build_model, check_output, load_trained, read_config, write_state
from ..tuning import adapter_header, adapter_state, find_backbone
from ..version import __version__
from ..weights import write_json
from ..weights.archs import ARCHS, known_elsewhere
from ..weights.export import export_names, has_hf_config, hf_config, libraries
from ..weights.export_onnx import to_onnx
from ..weights.export_peft import check_folder, lora_to_peft, write_peft
from .arguments.export import TARGETS


class Scores(nn.Module):
    """Backbone, neck and head as one module: preprocessed input (B, 3, [T,] H, W) -> scores (B, classes).

    Args:
        model: Backbone, classifier or recognizer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        backbone, prefix = find_backbone(model)
        parts = [getattr(model, name, None) for name in ('neck', 'head', 'cls_head')] if prefix else []
        self.parts = nn.ModuleList([backbone, *(part for part in parts if part is not None)])
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, [T,] H, W) -> (B, classes), or the last feature of a bare backbone."""
        y: Any = x
        for part in self.parts:
            y = part(y)
        return y[-1] if isinstance(y, (tuple, list)) else y


def merge_if_possible(model: nn.Module) -> Tuple[Optional[MergeReport], str]:
    """Merge what is attached; where it cannot be merged the model stays as it is, and the reason is returned."""
    try:
        return merge(model), ''
    except ValueError as error:
        if 'cannot be merged' not in str(error):
            raise
        return None, str(error).replace('; the model is unchanged', '')


def export_onnx(model: nn.Module, path: str, backbone_only: bool = False) -> List[str]:
    """Write scores (or features) of preprocessed inputs as an ONNX graph that onnxruntime computes alike.

    Args:
        model: Model with loaded weights; methods are merged where possible and stay in the graph otherwise.
        path: ``*.onnx``.
        backbone_only: Features in place of scores.

    Returns:
        Lines that say what was done.
    """
    report, reason = merge_if_possible(model)
    backbone, _ = find_backbone(model)
    backbone.petl.widen()
    module = Scores(backbone if backbone_only else model)
    difference = to_onnx(module, probe_for(backbone, 2), path)
    what = str(report) if report else f'not merged, the graph holds the methods: {reason}'
    return [what, f'max |difference| {difference:.1e} between onnxruntime and the model',
            'its input x is preprocessed: normalise as the data_preprocessor of the config does']


@torch.no_grad()
def affine_of(head: nn.Module, width: int, wrap: Callable[[Tensor], Any]) -> Optional[Tuple[Tensor, Tensor]]:
    """Weight (classes, C) and bias (classes) of a head that is an affine map of its feature, whatever it is made of;
    else None.

    A batch norm without parameters in front of a linear layer, for example, is an affine map with it.

    Args:
        head: Head in evaluation mode.
        width: Feature width C.
        wrap: Feature (B, C) -> what the head takes.
    """
    like = next(head.parameters(), None)
    if like is None:
        return None
    probe = torch.randn(8, width, generator=torch.Generator().manual_seed(0)).to(like)
    try:
        bias = head(wrap(torch.zeros_like(probe[:2])))[0]
        weight = (head(wrap(torch.eye(width).to(like))) - bias).t()
        scores = head(wrap(probe))
    except (RuntimeError, ValueError, IndexError):
        return None
    error = (nn.functional.linear(probe, weight, bias) - scores).abs().max()
    return (weight, bias) if error <= 1e-4 * max(1., float(scores.abs().max())) else None


def _outer(model: nn.Module, arch: str, library: str) -> Dict[str, Tensor]:
    """What stands outside the backbone: a projection beside text as ``proj``, of others an affine head as
    ``head.weight`` and ``head.bias``."""
    backbone, neck = find_backbone(model)[0], getattr(model, 'neck', None)
    if ARCHS[arch].projects:
        return {'proj': neck.proj.detach()} if isinstance(getattr(neck, 'proj', None), Tensor) else {}
    head, video = getattr(model, 'head', None), getattr(model, 'cls_head', None)
    if neck is not None and type(neck).__name__ != 'GlobalAveragePooling' or (head is None and video is None):
        return {}
    if library == 'hf' and getattr(backbone, 'out_type', None) in ('raw', 'featmap'):
        return {}  # the head reads a mean of the patches, those of transformers' ViTs read the class token
    width = backbone.petl.blocks[-1].spec.dim
    found = affine_of(video, width, lambda f: f) if video is not None else affine_of(head, width, lambda f: (f, ))
    return {} if found is None else {'head.weight': found[0], 'head.bias': found[1]}


def export_library(model: nn.Module, library: str, path: str, source: str, backbone_only: bool = False) -> List[str]:
    """Write the merged model under the names of another library.

    Args:
        model: Model with loaded weights.
        library: 'timm', 'hf', 'openai' or 'original'.
        path: ``*.safetensors`` or ``*.pth``; for 'hf' a folder, which gets ``model.safetensors`` and ``config.json``.
        source: File that it came from, noted by name.
        backbone_only: Leave out classifier and projection.

    Raises:
        ValueError: If a method cannot be merged, or the library has no such architecture.
    """
    backbone, prefix = find_backbone(model)
    arch = backbone.petl.family.arch(backbone)
    if library not in libraries(arch):
        raise ValueError(f'no export of {arch!r} to {library!r}; known for it: '
                         f'{", ".join(libraries(arch)) or "none"}; --to safetensors --backbone-only writes '
                         f'the names of {own_library(backbone)}, which are its own')
    if library == 'hf' and not has_hf_config(backbone.state_dict(), arch):
        raise ValueError(f'no config of transformers is known for {arch!r}: take --to '
                         f'{" or ".join(name for name in libraries(arch) if name != "hf")}')
    report = merge(model)
    state = {k: v.detach() for k, v in backbone.state_dict().items()}
    outer = _outer(model, arch, library) if prefix and not backbone_only else {}
    state.update(outer)
    renamed = export_names(state, arch, library)
    meta = dict(
        mmpetl_version=__version__,
        exported_from=os.path.basename(source),
        library=library,
        arch=arch,
        merged=report.merged)
    target = path
    if library == 'hf':
        check_folder(path, 'transformers')
        target = os.path.join(path, 'model.safetensors')
        write_json(os.path.join(path, 'config.json'), _hf_config(model, backbone, state, arch))
    write_state(target, renamed, meta)
    headless = bool(prefix) and not backbone_only and 'head.weight' not in outer
    left = [f'the head was left out: {library} has none like it'] if headless else []
    return [str(report), f'{len(renamed)} tensors under the names of {library}', *left]


def _hf_config(model: nn.Module, backbone: nn.Module, state: Dict[str, Tensor], arch: str) -> Dict[str, Any]:
    spec = backbone.petl.blocks[0].spec
    more = ARCHS[arch].hf_input(spec.grid, spec.patch)
    return hf_config(state, arch, spec.heads, backbone.petl.blocks[0].norm1.eps, **more)


def own_library(backbone: nn.Module) -> str:
    """Library whose names the modules of an attached backbone have: 'timm', 'hf', 'mmpretrain' or 'mmaction2'."""
    package = FAMILIES[backbone.petl.family_name].classes[0].split('.')[0]
    return {'transformers': 'hf', 'mmaction': 'mmaction2'}.get(package, package)


def export_peft(model: nn.Module, library: str, folder: str, prefix: str = '') -> List[str]:
    """Write the methods of a model in peft's format: under the names of its own library all kinds that
    :func:`mmpetl.save_peft` writes, under those of another one a LoRA.

    Args:
        model: Model with loaded weights.
        library: Library of the model that opens them: 'timm', 'hf', 'hf4', 'mmpretrain', 'mmaction2' or 'original';
            '' for its own if that is timm or transformers, else 'timm'.
        folder: Gets ``adapter_model.safetensors`` and ``adapter_config.json``.
        prefix: What stands before the block names in the base model, see :func:`lora_to_peft`.

    Raises:
        ValueError: If there is no such folder for the methods, or peft would have no effect on that base.
    """
    backbone, _ = find_backbone(model)
    own = own_library(backbone)
    library = library or (own if own in ('timm', 'hf') else 'timm')
    if library == own:
        return [f'{save_peft(backbone, folder, prefix)[0]}; the head is not part of it']
    kinds = {type(method).__name__ for method in backbone.petl.values()}
    if own in ('timm', 'hf') or 'LoRA' not in kinds and any(kinds & set(kind.methods) for kind in KINDS.values()):
        raise ValueError(f'--library {library}: {", ".join(sorted(kinds))} of {type(backbone).__name__} is written '
                         f'under the names of {own} alone: give --library {own}')
    header, petl = adapter_header(model), backbone.petl
    arch = known_elsewhere(backbone.state_dict(), petl.family.arch(backbone), library).name
    scales = next((m.scales for m in petl.values() if hasattr(m, 'scales')), None)
    if petl.tune:
        raise ValueError(
            f'the adapter also changes base parameters ({", ".join(petl.tune[:3])}), which a peft LoRA cannot hold')
    stages = [block.spec.stage for block in petl.blocks]
    depths = [stages.count(stage) for stage in sorted(set(stages))]
    state, config = lora_to_peft(
        adapter_state(model), header['methods'], arch, library, prefix, header['base'].get('id'), scales, depths)
    write_peft(folder, state, config)
    return [f'{len(state)} factors for {library}; the head is not part of it']


def _target(args: argparse.Namespace) -> str:
    """The wanted target; its output name is checked.

    Raises:
        ValueError: If the suffix does not say it, or does not fit it.
    """
    target = args.to or {'.onnx': 'onnx', '.safetensors': 'safetensors'}.get(os.path.splitext(args.out)[1])
    if target is None:
        raise ValueError(f'{args.out}: cannot tell the format from the name; say --to {"|".join(TARGETS)}')
    suffixes = dict(
        onnx=('.onnx', ),
        safetensors=('.safetensors', ),
        timm=('.safetensors', '.pth'),
        openai=('.safetensors', '.pth'),
        original=('.safetensors', '.pth'))
    if target in ('hf', 'peft'):
        check_folder(args.out, {'hf': 'transformers', 'peft': 'peft'}[target])
    if target in suffixes:
        check_output(args.out, (args.config, args.adapter), suffixes[target])
    return str(target)


def run(args: argparse.Namespace) -> None:
    """Export, and print what was done.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: What cannot be exported, in one line.
    """
    target = _target(args)
    for option in ('library', 'prefix'):
        if getattr(args, option) and target != 'peft':
            raise ValueError(f'--{option} {getattr(args, option)} is for --to peft, and this writes {target}: leave it '
                             'out')
    cfg = read_config(args.config, args.cfg_options)
    if args.base:
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=args.base)
    with contextlib.redirect_stdout(sys.stderr):  # building a model may log
        model = build_model(cfg)
        load_trained(model, args.adapter, cfg, args.force)
        model.eval()
        if target == 'onnx':
            said = export_onnx(model, args.out, args.backbone_only)
        elif target == 'peft':
            said = export_peft(model, args.library or '', args.out, args.prefix)
        elif target == 'safetensors':
            report = merge(model)
            state = find_backbone(model)[0].state_dict() if args.backbone_only else model.state_dict()
            write_state(args.out, state, dict(mmpetl_version=__version__, merged=report.merged))
            said = [str(report)]
        else:
            said = export_library(model, target, args.out, args.adapter, args.backbone_only)
    print('\n'.join([*said, f'wrote {args.out}']))
