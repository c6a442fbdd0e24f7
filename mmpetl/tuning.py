# SPDX-License-Identifier: Apache-2.0
"""What trains, what it weighs, and how it leaves: counts, adapter state, the header of an adapter file.

Works on any model with an attached backbone: the backbone itself, or a classifier or recognizer that holds it as
``backbone``.
"""

import functools
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from torch import Tensor, nn

from .weights import adapter_file
from .weights.belongs import plain


def find_backbone(model: nn.Module) -> Tuple[nn.Module, str]:
    """The attached backbone of a model and the prefix of its parameter names ('' or, for example, 'backbone.').

    Raises:
        ValueError: If nothing is attached.
    """
    model = unwrap(model)
    if not isinstance(model, nn.Module):
        raise ValueError(f'{model!r:.80} is no model: give a torch.nn.Module that holds a backbone')
    for module, prefix in ((model, ''), (getattr(model, 'backbone', None), 'backbone.')):
        if _is_attached(module):
            return module, prefix
    for name, module in model.named_modules():
        if _is_attached(module):
            return module, f'{name}.'
    raise ValueError(
        f'{type(model).__name__} has no attached backbone: build it as mmpetl.<Backbone> or call mmpetl.attach first')


def _is_attached(module: Optional[nn.Module]) -> bool:
    return hasattr(getattr(module, 'petl', None), 'taps')


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile wrappers."""
    while hasattr(model, 'module') or hasattr(model, '_orig_mod'):
        model = model.module if hasattr(model, 'module') else model._orig_mod
    return model


# -- counts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """Trainable parameters of a model.

    Attributes:
        methods: Parameters per method, by name.
        tuned: Base parameters that train.
        head: Trainable parameters outside the backbone.
        base: All base parameters.
    """
    methods: Dict[str, int] = field(default_factory=dict)
    tuned: int = 0
    head: int = 0
    base: int = 0

    @property
    def without_head(self) -> int:
        return sum(self.methods.values()) + self.tuned

    @property
    def total(self) -> int:
        return self.without_head + self.head

    @property
    def percent(self) -> float:
        """Trainable parameters without the head, in percent of the base."""
        return 100 * self.without_head / max(self.base, 1)

    def rows(self) -> List[Tuple[str, int]]:
        rows = [*self.methods.items()] + ([('base (tune)', self.tuned)] if self.tuned else [])
        return [*rows, ('without head', self.without_head), ('head', self.head), ('total', self.total)]

    def __str__(self) -> str:
        lines = [f'{"trainable":<22}{"parameters":>14}{"% of base":>11}']
        lines += [f'{name:<22}{count:>14,}{100 * count / max(self.base, 1):>11.3f}' for name, count in self.rows()]
        return '\n'.join([*lines, f'{"base":<22}{self.base:>14,}'])


def summary(model: nn.Module) -> Summary:
    """Count what trains.

    Raises:
        ValueError: If nothing is attached to the model.
    """
    backbone, _ = find_backbone(model)

    def trainable(parameters: Any) -> int:
        return sum(p.numel() for p in parameters if p.requires_grad)

    in_head = backbone.petl.family.in_head
    base = [p for n, p in backbone.named_parameters() if not (n.startswith('petl.') or in_head(n))]
    in_backbone = {id(p) for p in (*base, *backbone.petl.parameters())}
    return Summary(
        methods={name: trainable(method.parameters()) for name, method in backbone.petl.items()},
        tuned=trainable(base),
        head=trainable(p for p in unwrap(model).parameters() if id(p) not in in_backbone),
        base=sum(p.numel() for p in base))


# -- adapter state ----------------------------------------------------------------------------------------------------


def adapter_keys(model: nn.Module) -> List[str]:
    """State-dict keys that an adapter file holds: methods, tuned base parameters, and everything outside the
    backbone."""
    model = unwrap(model)
    backbone, prefix = find_backbone(model)
    tuned = {prefix + n for n, p in backbone.named_parameters() if p.requires_grad}
    return [k for k in model.state_dict() if not k.startswith(prefix) or k.startswith(prefix + 'petl.') or k in tuned]


def head_keys(model: nn.Module) -> List[str]:
    """State-dict keys outside the backbone, and those of a head that a timm model holds itself."""
    backbone, prefix = find_backbone(model)
    in_head = backbone.petl.family.in_head
    return [k for k in unwrap(model).state_dict() if not k.startswith(prefix) or in_head(k[len(prefix):])]


def adapter_state(model: nn.Module) -> Dict[str, Tensor]:
    """The tensors of :func:`adapter_keys`, buffers of trained modules (such as batch-norm statistics) included."""
    state = unwrap(model).state_dict()
    return {k: state[k] for k in adapter_keys(model)}


# -- header -----------------------------------------------------------------------------------------------------------

_PACKAGES = ('torch', 'mmengine', 'mmpretrain', 'mmaction2')


@functools.lru_cache(maxsize=None)
def _versions() -> Dict[str, str]:
    """Of the process; the metadata of four packages take longer to read than a small adapter to write."""
    found = {'python': platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


#: Attributes of heads and necks that no score depends on.
_SILENT = ('training', 'topk', 'cal_acc', 'init_std', 'init_scale', 'label_smooth_eps', 'checkpoint', 'text_features')


def part_facts(module: nn.Module) -> Dict[str, Any]:
    """Type and plain options of a head or neck."""
    def is_plain(value: Any) -> bool:
        return isinstance(value, (bool, int, float, str)) or (isinstance(value, (list, tuple))
                                                              and all(is_plain(v) for v in value))

    shown = {k: v for k, v in vars(module).items() if k[:1] != '_' and k not in _SILENT and is_plain(v)}
    return dict(type=type(module).__name__, **plain(shown))


def _normalisation(model: nn.Module) -> Optional[Dict[str, Any]]:
    """Mean, standard deviation and channel order of the model's data preprocessor."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    mean, std = (getattr(preprocessor, key, None) for key in ('mean', 'std'))
    if not isinstance(mean, Tensor) or not isinstance(std, Tensor) or mean.is_meta:
        return None
    shown = {key: [round(float(v), 4) for v in t.flatten()] for key, t in (('mean', mean), ('std', std))}
    return dict(shown,
                to_rgb=bool(getattr(preprocessor, 'to_rgb', getattr(preprocessor, '_channel_conversion', False))))


def model_facts(model: nn.Module) -> Dict[str, Any]:
    """What decides whether an adapter belongs on this model; see :func:`mmpetl.weights.belongs.check_belongs`."""
    model = unwrap(model)
    backbone, prefix = find_backbone(model)
    others = (prefix.split('.')[0], 'data_preprocessor')
    parts = {k: m for k, m in model.named_children() if k not in others} if prefix else {}
    return dict(backbone.petl.facts(), parts={k: part_facts(m) for k, m in parts.items()},
                normalisation=_normalisation(model) if prefix else None)


def _origin(model: nn.Module, backbone: nn.Module) -> Optional[Dict[str, Any]]:
    """Library, name and class of a model that was made by timm or transformers, as these libraries noted it; None where
    they did not make the whole of it."""
    made = next((c for c in type(model).__mro__ if not c.__module__.startswith('mmpetl.')), type(model))
    noted, config = getattr(model, 'pretrained_cfg', None), getattr(model, 'config', None)
    found: Dict[str, Any] = dict(library=made.__module__.split('.')[0], type=made.__name__)
    if isinstance(noted, Mapping) and noted.get('architecture'):
        # The tag says which weights such a model is offered with, not that they are in it: no name of a base.
        tag = noted.get('tag')
        return dict(found, name=f'{noted["architecture"]}.{tag}' if tag else str(noted['architecture']))
    name = getattr(config, 'name_or_path', None)
    if isinstance(name, str) and name:
        name = os.path.basename(name.rstrip('/')) if os.path.exists(name) else name
        return dict(found, name=name, base=name)
    return None


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
    if classes is not None and (isinstance(classes, str) or not isinstance(classes, Iterable)):
        raise ValueError(f'classes={classes!r:.80}: give a list of names in label order')
    if not isinstance(metrics or {}, Mapping):
        raise ValueError(f"metrics={metrics!r:.80}: give a dict such as {{'accuracy/top1': 90.}}")
    petl, counted = backbone.petl, summary(model)
    cfg = backbone.init_cfg if isinstance(getattr(backbone, 'init_cfg', None), dict) else {}
    checkpoint = cfg.get('checkpoint') if cfg.get('type') == 'Pretrained' else None
    frozen = any(not p.requires_grad for n, p in backbone.named_parameters() if not n.startswith('petl.'))
    facts, origin = model_facts(model), _origin(unwrap(model), backbone)
    return dict(
        format=adapter_file.FORMAT,
        mmpetl_version=adapter_file.__version__,
        name=name,
        methods=facts['methods'],
        tune=list(petl.tune),
        trunk=petl.trunk,
        backbone=facts['backbone'],
        model=dict({key: facts[key] for key in ('heads', 'dims', 'grid', 'window', 'output', 'parts', 'normalisation')},
                   origin=origin),
        base=dict(
            id=base_id or (os.path.basename(str(checkpoint)) if checkpoint else getattr(backbone, 'base_name', None)
                           or (origin or {}).get('base')),
            checkpoint=str(checkpoint) if checkpoint else None,
            fingerprint=petl.base_fingerprint() if frozen else None),
        head=head_keys(model),
        classes=list(classes) if classes else None,
        preprocessing=plain(preprocessing) if preprocessing else None,
        metrics=dict(metrics or {}),
        versions=dict(_versions()),
        counts=dict(
            petl=sum(counted.methods.values()),
            tuned=counted.tuned,
            head=counted.head,
            total=counted.total,
            base=counted.base),
        extra=plain(extra or {}))


def write_adapter(model: nn.Module, path: str, **facts: Any) -> None:
    """Write the adapter of a model, atomically. ``facts``: see :func:`adapter_header`."""
    adapter_file.save(path, adapter_state(model), adapter_header(model, **facts))
