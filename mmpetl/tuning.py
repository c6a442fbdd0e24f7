# SPDX-License-Identifier: Apache-2.0
"""What trains, what it weighs, and how it leaves: counts, adapter state, merging methods into the base.

Works on any model with an attached backbone: the backbone itself, or a classifier or recognizer that holds it as
``backbone``.
"""

import os
import platform
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .sites import ALL_OPS, NORMS, Method
from .weights import adapter_file
from .weights.belongs import plain

#: The norm that a linear op reads.
_NORM_OF = dict(q='norm1', k='norm1', v='norm1', fc1='norm2', gate='norm2')
POINTS_THAT_STAY = ('qkv', 'branch', 'kv', 'prompts', 'stream', 'entry', 'side')


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

    head = backbone.petl.family.head
    base = [p for n, p in backbone.named_parameters() if n.split('.')[0] not in ('petl', *head)]
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
    inner = tuple(f'{prefix}{name}.' for name in backbone.petl.family.head)
    return [k for k in unwrap(model).state_dict() if not k.startswith(prefix) or k.startswith(inner)]


def adapter_state(model: nn.Module) -> Dict[str, Tensor]:
    """The tensors of :func:`adapter_keys`, buffers of trained modules (such as batch-norm statistics) included."""
    state = unwrap(model).state_dict()
    return {k: state[k] for k in adapter_keys(model)}


# -- header -----------------------------------------------------------------------------------------------------------

_PACKAGES = ('torch', 'mmengine', 'mmpretrain', 'mmaction2')


def _versions() -> Dict[str, str]:
    found = {'python': platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


#: Attributes of heads and necks that no score depends on.
_SILENT = ('training', 'topk', 'cal_acc', 'init_std', 'init_scale', 'label_smooth_eps', 'checkpoint', 'text_features')


def _options(module: nn.Module) -> Dict[str, Any]:
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
    return dict(backbone.petl.facts(), parts={k: _options(m) for k, m in parts.items()},
                normalisation=_normalisation(model) if prefix else None)


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
    facts = model_facts(model)
    return dict(
        format=adapter_file.FORMAT,
        mmpetl_version=adapter_file.__version__,
        name=name,
        methods=facts['methods'],
        tune=list(petl.tune),
        trunk=petl.trunk,
        backbone=facts['backbone'],
        model={key: facts[key] for key in ('heads', 'dims', 'grid', 'window', 'output', 'parts', 'normalisation')},
        base=dict(
            id=base_id or (os.path.basename(str(checkpoint)) if checkpoint else getattr(backbone, 'base_name', None)),
            checkpoint=str(checkpoint) if checkpoint else None,
            fingerprint=petl.base_fingerprint() if frozen else None),
        head=head_keys(model),
        classes=list(classes) if classes else None,
        preprocessing=plain(preprocessing) if preprocessing else None,
        metrics=dict(metrics or {}),
        versions=_versions(),
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


# -- merging ----------------------------------------------------------------------------------------------------------


@dataclass
class MergeReport:
    """What :func:`merge` did: names of the merged methods, and the largest difference on the probe (None if not
    verified)."""
    merged: List[str]
    max_difference: Optional[float] = None

    @property
    def folded(self) -> List[str]:
        """Earlier name of ``merged``."""
        return self.merged

    def __str__(self) -> str:
        names = ', '.join(self.merged) or 'nothing'
        if self.max_difference is None:
            return f'merged {names}; not verified'
        return f'merged {names}; max |difference| {self.max_difference:.1e} on a probe batch'


def _culprit(methods: Dict[str, nn.Module]) -> Optional[Tuple[str, nn.Module]]:
    for name, method in methods.items():
        if any(method.active(p, i) for p in POINTS_THAT_STAY for i in range(len(method.specs))):
            return name, method
    return None


def _cannot(name: str, method: nn.Module, op: str, i: int) -> ValueError:
    return ValueError(f'{name} ({type(method).__name__}) cannot be merged into {op} of block {i}')


def _through_norm(method: nn.Module) -> bool:
    return type(method).fold_norm is not Method.fold_norm


def _merge_one(backbone: nn.Module, i: int, op: str, weight: Tensor,
              bias: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
    passed = False
    for name, method in backbone.petl.items():
        on_norm = op in NORMS and method.active('norm', i) and op in method.norm_ops(i)
        if not (on_norm or op in ALL_OPS and method.active('linear', i) and op in method.linear_ops(i)):
            continue
        if on_norm and _through_norm(method):
            passed = True  # it is merged into the ops behind the norm
            continue
        merged = None if on_norm and passed else method.fold(i, op, weight, bias)
        if merged is None:
            raise _cannot(name, method, op, i)
        weight, bias = merged
    # Every on_linear reads what on_input makes, so inputs come after outputs; the first of the list acts first on x.
    for name, method in reversed(list(backbone.petl.items())):
        if op in ALL_OPS and method.active('input', i) and op in method.input_ops(i):
            through = method.fold_input(i, op, weight)
            if through is None:
                raise _cannot(name, method, op, i)
            weight = through
    # What stands at the norm acts before both.
    for name, method in reversed(list(backbone.petl.items())):
        if _through_norm(method) and method.active('norm', i) and _NORM_OF.get(op) in method.norm_ops(i):
            merged = method.fold_norm(i, op, weight, bias)
            if merged is None:
                raise _cannot(name, method, op, i)
            weight, bias = merged
    return weight, bias


@torch.no_grad()
def _merged(backbone: nn.Module) -> List[Tuple[Tensor, Tensor]]:
    """(parameter or view, new value) of everything that merging changes."""
    petl, family = backbone.petl, backbone.petl.family
    last = len(petl.blocks) - 1
    writes: List[Tuple[Tensor, Tensor]] = []

    def merge_op(i: int, op: str, weight: Tensor, bias: Optional[Tensor], where: str) -> None:
        flat = weight.detach().flatten(1) if weight.dim() > 2 else weight.detach()
        new_weight, new_bias = _merge_one(backbone, i, op, flat, None if bias is None else bias.detach())
        writes.append((weight, new_weight.view_as(weight)))
        if bias is not None:
            writes.append((bias, new_bias))
        elif new_bias is not None and op == 'embed' and family.fold_embed_shift is not None:
            writes.append(family.fold_embed_shift(backbone, new_bias))
        elif new_bias is not None and (op != 'k' or not petl.blocks[i].key_bias_cancels):
            # A key bias adds one constant to all logits of a query, so the softmax does not see it: it may be dropped,
            # unless keys are rotated or normed after it.
            raise ValueError(f'{where} has no bias that could hold the shift of {", ".join(petl)}')

    for i, block in enumerate(petl.blocks):
        for op in block.spec.ops:
            merge_op(i, op, *block.op_parameters(op), f'{op} of block {i}')  # type: ignore[call-arg]
        for op, norm in (('norm1', block.norm1), ('norm2', block.norm2)):
            merge_op(i, op, norm.weight, getattr(norm, 'bias', None), f'{op} of block {i}')
    merge_op(0, 'embed', *family.embed_parameters(backbone), 'the patch embedding')  # type: ignore[call-arg]
    final = family.final_norm(backbone)
    if isinstance(final, nn.LayerNorm):
        merge_op(last, 'final', final.weight, final.bias, 'the final norm')
    return writes


def probe_for(backbone: nn.Module, batch: int = 2) -> Tensor:
    """A random input of the size for which the backbone was built, (B, C, H, W) or (B, C, T, H, W)."""
    spec = backbone.petl.blocks[0].spec
    cells = spec.grid or tuple(2 * w if a else w for a, w in enumerate(spec.window))
    weight = next(backbone.parameters())
    # the patch embedding, which knows whether pictures are grey, coloured or multispectral
    channels = next((m.in_channels for m in backbone.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), 3)
    generator = torch.Generator().manual_seed(0)
    sizes = [c * p for c, p in zip(cells, spec.patch)]
    if spec.frames:  # a backbone for images that reads clips
        sizes = [spec.frames, *sizes]
    x = torch.randn(batch, channels, *sizes, generator=generator).to(weight)
    axes = backbone.petl.family.clip_axes
    return x if axes is None else axes(backbone, x)


def _features(backbone: nn.Module, x: Tensor) -> List[Tensor]:
    out = backbone(x)
    parts = list(out.values()) if isinstance(out, Mapping) else out if isinstance(out, (tuple, list)) else [out]
    return [part for part in parts if isinstance(part, Tensor)]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def merge(model: nn.Module,
          verify: bool = True,
          probe: Optional[Tensor] = None,
          tolerance: float = 1e-3) -> MergeReport:
    """Merge all methods into the base, in list order, in place; afterwards the backbone has no extra parameter.

    The merged state dict loads with ``strict=True`` into the plain upstream backbone.

    Args:
        model: Model with an attached backbone.
        verify: Compare the backbone before and after on ``probe``; the old weights are restored when they
            differ.
        probe: Input of the backbone, (B, 3, H, W) or (B, 3, T, H, W); None makes a random one.
        tolerance: Largest accepted difference, relative to the largest output.

    Returns:
        Names of what was merged, and the difference.

    Raises:
        ValueError: If a method cannot be merged (it is named) or the verification fails; the model is unchanged then.
    """
    backbone, _ = find_backbone(model)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance > 0:
        raise ValueError(f'tolerance={tolerance!r:.80}: give a number above 0')
    if probe is not None and (not isinstance(probe, Tensor) or probe.dim() not in (4, 5)):
        shape = tuple(probe.shape) if isinstance(probe, Tensor) else repr(probe)[:80]
        raise ValueError(f'probe={shape}: give an input of the backbone, (B, 3, H, W) or (B, 3, T, H, W)')
    petl = backbone.petl
    culprit = _culprit(dict(petl.items()))
    if culprit:
        raise ValueError(f'{culprit[0]} ({type(culprit[1]).__name__}) is not a change of weights and cannot be merged; '
                         'the model is unchanged')
    writes = _merged(backbone)
    report = MergeReport(list(petl))
    old = [(target, target.detach().clone()) for target, _ in writes]
    with _evaluating(backbone):
        if verify:
            probe = probe_for(backbone) if probe is None else probe
            before = _features(backbone, probe)
        for target, value in writes:
            target.copy_(value)
        if verify:
            with petl.disabled():
                after = _features(backbone, probe)
            report.max_difference = max((a - b).abs().max().item() for a, b in zip(before, after))
            largest = max(b.abs().max().item() for b in before)
            if not report.max_difference <= tolerance * max(largest, 1.):
                for target, value in old:
                    target.copy_(value)
                raise ValueError(
                    f'merging {", ".join(petl)} changes the output by {report.max_difference:.1e}, more than the '
                    f'tolerance '
                    f'{tolerance:.0e} of its size {largest:.1e}; the model is unchanged')
    for name in list(petl):
        del petl[name]
    petl.configs = {}
    petl.refresh()
    print_log(f'Merge: {report}', 'current')
    return report
