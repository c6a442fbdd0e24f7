"""Adapter files from and into models."""

import os
import platform
from collections import OrderedDict
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from mmengine.logging import print_log
from torch import nn

from ..backbones.attach import attach
from ..backbones.loading import ADAPTER_KEY, base_fingerprint
from ..tuning import adapter_state, find_backbone, head_keys, summary, unwrap
from ..weights import adapter_file

_PACKAGES = ('torch', 'mmengine', 'mmpretrain', 'mmaction2')


def _plain(value: Any) -> Any:
    """A config value as JSON types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, '__name__', str(value))


def _versions() -> Dict[str, str]:
    found = {'python': platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def adapter_header(model: nn.Module,
                   name: str = 'default',
                   base_id: Optional[str] = None,
                   classes: Optional[Sequence[str]] = None,
                   preprocessing: Optional[Mapping[str, Any]] = None,
                   metrics: Optional[Mapping[str, float]] = None,
                   extra: Optional[Mapping[str, Any]] = None) -> Dict[str, Any]:
    """Header of an adapter file: everything needed to know what the tensors are and on which base they belong.

    Args:
        model: Model with an attached backbone.
        name: Name of the adapter.
        base_id: What people call the base; default the file name of the backbone's pretrained checkpoint.
        classes: Class names in label order.
        preprocessing: Data preprocessor and test pipeline.
        metrics: Measured with exactly these weights.
        extra: Anything else that JSON can hold.
    """
    backbone, _ = find_backbone(model)
    petl, counted = backbone.petl, summary(model)
    cfg = backbone.init_cfg if isinstance(getattr(backbone, 'init_cfg', None), dict) else {}
    checkpoint = cfg.get('checkpoint') if cfg.get('type') == 'Pretrained' else None
    frozen = any(not p.requires_grad for n, p in backbone.named_parameters() if not n.startswith('petl.'))
    upstream = next(c for c in type(backbone).__mro__ if not c.__module__.startswith('mmpetl.'))
    return dict(
        format=adapter_file.FORMAT,
        mmpetl_version=adapter_file.__version__,
        name=name,
        methods=[dict(_plain(cfg), name=key) for key, cfg in petl.configs.items()],
        tune=list(petl.tune),
        trunk=petl.trunk,
        backbone=f'{upstream.__module__}.{upstream.__qualname__}',
        base=dict(id=base_id or (os.path.basename(str(checkpoint)) if checkpoint else None),
                  checkpoint=str(checkpoint) if checkpoint else None,
                  fingerprint=base_fingerprint(backbone) if frozen else None),
        head=head_keys(model),
        classes=list(classes) if classes else None,
        preprocessing=_plain(preprocessing) if preprocessing else None,
        metrics=dict(metrics or {}),
        versions=_versions(),
        counts=dict(petl=sum(counted.methods.values()), tuned=counted.tuned, head=counted.head, total=counted.total, base=counted.base),
        extra=_plain(extra or {}))


def write_adapter(model: nn.Module, path: str, **facts: Any) -> None:
    """Write the adapter of a model, atomically. ``facts``: see :func:`adapter_header`."""
    adapter_file.save(path, adapter_state(model), adapter_header(model, **facts))


def save_adapter(model: nn.Module, path: str, **facts: Any) -> None:
    """Write methods, tuned trunk parameters and head of a model as one ``.safetensors`` with a header.

    Args:
        model: Model with an attached backbone.
        path: ``*.safetensors``; written atomically.
        **facts: ``name``, ``base_id``, ``classes``, ``preprocessing``, ``metrics``, ``extra``; see :func:`adapter_header`.

    Raises:
        ValueError: If nothing is attached or the path has another suffix.
    """
    write_adapter(model, path, **facts)


def load_adapter(model: nn.Module, path: str) -> Dict[str, Any]:
    """Put an adapter file onto a model, in place.

    Args:
        model: A model whose trunk holds the adapter's base. If nothing is attached to it yet, the adapter's methods are attached first.
        path: File written by :func:`save_adapter` or a training run.

    Returns:
        The header of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the base, the methods or the head do not fit; the model keeps its weights.
    """
    tensors, header = adapter_file.load(path)
    target = unwrap(model)
    try:
        backbone, prefix = find_backbone(target)
    except ValueError:
        backbone = getattr(target, 'backbone', target)
        attach(backbone, header['methods'], header['tune'], header['trunk'])
        backbone, prefix = find_backbone(target)
    _check_shapes(target, tensors, header, path, prefix)
    state = OrderedDict(_renamed(tensors, prefix))
    state._metadata = OrderedDict({prefix.rstrip('.'): {ADAPTER_KEY: header}})  # type: ignore[attr-defined]
    target.load_state_dict(state, strict=True)
    print_log(f"Adapter {header['name']!r} of {path}: {len(tensors)} tensors on base {header['base'].get('id')!r}", 'current')
    return header


def _renamed(tensors: Mapping[str, torch.Tensor], prefix: str) -> Dict[str, torch.Tensor]:
    """Adapter tensors under the model's names: a bare backbone takes the backbone's part of a classifier's adapter, and the reverse."""
    of_classifier = any(k.startswith('backbone.') for k in tensors)
    if prefix and not of_classifier:
        return {prefix + k: v for k, v in tensors.items()}
    if not prefix and of_classifier:
        return {k[len('backbone.'):]: v for k, v in tensors.items() if k.startswith('backbone.')}
    return dict(tensors)


def _check_shapes(model: nn.Module, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any], path: str, prefix: str) -> None:
    own, given = model.state_dict(), _renamed(tensors, prefix)
    heads: List[str] = head_keys(model)
    for key in heads:
        if key not in given:
            raise ValueError(f'{path} has no {key}: the head of the model is another one than the adapter was trained with')
        if own[key].shape != given[key].shape:
            raise ValueError(f'{path}: {key} has shape {tuple(given[key].shape)}, the model {tuple(own[key].shape)}; '
                             'give the head the number of classes of the adapter')
