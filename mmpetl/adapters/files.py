# SPDX-License-Identifier: Apache-2.0
"""Adapter files from and into models."""

import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..backbones.as_it_was import as_it_was
from ..backbones.attach import attach, specs_of
from ..backbones.family import backbone_in
from ..backbones.from_data import methods_from_data
from ..sites import BlockSpec
from ..tuning import find_backbone, unwrap, write_adapter
from ..weights import adapter_file
from ..weights.adapter_file import STATE_KEY, base_name
from ..weights.hub import is_peft, local_path
from .facts import check_adapter, check_head, forced
from .peft_folder import load_peft


def save_adapter(model: nn.Module, path: str, **facts: Any) -> None:
    """Write methods, tuned base parameters and head of a model as one ``.safetensors`` with a header.

    Args:
        model: Model with an attached backbone.
        path: ``*.safetensors``; written atomically.
        **facts: ``name``, ``base_id``, ``classes``, ``preprocessing``, ``metrics``, ``extra``; see
            :func:`adapter_header`.

    Raises:
        ValueError: If nothing is attached, the path has another suffix, or ``classes`` are no names or not as many as
            the head has.
    """
    if facts.get('classes') is not None:
        _check_classes(model, facts['classes'])
    write_adapter(model, path, **facts)


def _check_classes(model: nn.Module, classes: Any) -> None:
    """Refuse what cannot be the names of the head's classes; say where two read alike, as upstream's ImageNet has them.

    Raises:
        ValueError: Names what is wrong.
    """
    how = 'give a list of names in label order'
    if isinstance(classes, (str, Mapping, set, frozenset)) or not isinstance(classes, Iterable):
        raise ValueError(f'classes={classes!r:.80}: {how}')
    names = list(classes)
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None or None in names:
        raise ValueError(f'classes: {wrong!r:.80} is no name: {how}')
    target = unwrap(model)
    heads = (getattr(target, 'head', None), getattr(target, 'cls_head', None), target)
    count = next((n for head in heads if isinstance(n := getattr(head, 'num_classes', None), int) and n > 0), None)
    if count is not None and names and len(names) != count:
        raise ValueError(f'classes: {len(names)} names, and the head has {count} classes: {how}')
    first: Dict[str, int] = {}
    for label, name in enumerate(names):
        if first.setdefault(name, label) != label:
            print_log(f'classes: {name!r:.80} names labels {first[name]} and {label}, whose predictions will read '
                      'alike: give each a name of its own', 'current', logging.WARNING)
            return


def header_of(loaded: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    """Header of an adapter file, or of a training run's checkpoint, as :func:`mmpetl.weights.io.load_file` returns it;
    None where the file has none."""
    # load_file gives the header of an adapter file as 'meta', as checkpoints have it.
    meta = loaded.get('meta')
    if isinstance(meta, Mapping) and 'methods' in meta:
        return dict(meta)
    # A checkpoint of a training run has it where torch keeps versions of modules.
    kept = getattr(loaded.get('state_dict', loaded), '_metadata', None) or {}
    return next((m[STATE_KEY] for m in kept.values() if isinstance(m, dict) and STATE_KEY in m), None)


def load_adapter(model: nn.Module, path: str, force: bool = False, **data: Any) -> Dict[str, Any]:
    """Put an adapter file onto a model, in place.

    Args:
        model: A model whose backbone holds the adapter's base. If nothing is attached yet, the adapter's methods are
            attached first.
        path: File written by :func:`save_adapter` or a training run, folder of peft, or one of these on the Hugging
            Face hub, ``hf://user/repo[@revision][/file]``, see :func:`mmpetl.weights.hub.local_path`.
        force: Take it in spite of differences that change neither names nor shapes (other arguments of a method, heads
            of attention, classes, preprocessing); each is logged.
        **data: What is known of the data: ``classes`` (names), ``pipeline``, ``normalisation``.

    Returns:
        The header of the file; of a folder of peft its config.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be had from the hub, in one line.
        ValueError: If base, methods and their arguments, heads of attention, head, classes or preprocessing are others
            than those with which it was trained, in a line that names both values; the model is left as it was, without
            methods if it had none.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f'{model!r:.80} is no model: give a torch.nn.Module that holds a backbone')
    named, path = path, local_path(path)
    if is_peft(path):
        return load_peft(model, path)
    # Whole and checked, before the model is touched.
    tensors, header = adapter_file.load(path)
    path, target = str(named), unwrap(model)
    with as_it_was(target):
        try:
            backbone, prefix = find_backbone(target)
        except ValueError:
            backbone = backbone_in(target)
            # The file says which methods; methods_of has checked that they are harmless to build.
            attach(backbone, methods_of(path, header, specs_of(backbone)), header['tune'], header['trunk'])
            backbone, prefix = find_backbone(target)
        check_adapter(target, header, path, force, **data)
        # Before anything is loaded: a refusal leaves the model as it is.
        check_head(target, renamed(tensors, header, prefix), path)
        state = OrderedDict(renamed(tensors, header, prefix))
        # The way in which the load hook gets the header, see mmpetl.backbones.load_hook.
        state._metadata = OrderedDict({prefix.rstrip('.'): {STATE_KEY: header}})  # type: ignore[attr-defined]
        try:
            with backbone.petl.turn.held(), forced(target, force):
                # strict: the hook fills in the base, so whatever is missing then is a fault.
                # torch's own: wrappers of other libraries rename keys in theirs, and lose the header.
                nn.Module.load_state_dict(target, state, strict=True)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f'{path}: {" ".join(str(error).split()).removeprefix(f"{path}: ")}') from None
    print_log(f"Adapter {header['name']!r} of {path}: {len(tensors)} tensors on {base_name(header['base'])}",
              'current')
    return header


def methods_of(path: str, header: Mapping[str, Any], specs: Sequence[BlockSpec]) -> List[Dict[str, Any]]:
    """The method configs of a file that may be built on a backbone with these blocks.

    Raises:
        ValueError: See :func:`mmpetl.backbones.from_data.methods_from_data`.
    """
    return methods_from_data(header['methods'], specs, path, header['counts']['stored'])


def renamed(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any], prefix: str) -> Dict[str, torch.Tensor]:
    """Adapter tensors under the model's names: a bare backbone takes the backbone's part of a classifier's adapter, and
    the reverse."""
    # What stands before the first petl key is the prefix that the backbone had in the model which wrote
    # the file.
    inside = next((k[:f'.{k}'.index('.petl.')] for k in tensors if '.petl.' in f'.{k}'), '')
    # A linear probe has head keys alone; those of a timm model are its own.
    probe = set(tensors) <= set(header.get('head', ())) and not str(header.get('backbone')).startswith('timm.')
    if not inside and (probe or any(k.startswith('backbone.') for k in tensors)):
        inside = 'backbone.'
    # Model and file agree: nothing to rename.
    if inside == prefix:
        return dict(tensors)
    if not inside:
        return {prefix + k: v for k, v in tensors.items()}
    moved = {prefix + k[len(inside):]: v for k, v in tensors.items() if k.startswith(inside)}
    outside = {k: v for k, v in tensors.items() if not k.startswith(inside)}
    # A bare backbone has no place for the head.
    return {**moved, **outside} if prefix else moved


def resize_linears(module: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Give linear layers the number of outputs that ``given`` has for them, and the module its number of classes."""
    for name, linear in module.named_modules():
        weight = given.get(f'{name}.weight' if name else 'weight')
        if isinstance(linear, nn.Linear) and weight is not None and weight.shape[1:] == linear.weight.shape[1:]:
            if len(weight) != linear.out_features:
                linear.weight = nn.Parameter(linear.weight.new_empty(weight.shape))
                if linear.bias is not None:
                    linear.bias = nn.Parameter(linear.bias.new_empty(len(weight)))
                if getattr(module, 'num_classes', None) == linear.out_features:
                    module.num_classes = len(weight)
                linear.out_features = len(weight)
