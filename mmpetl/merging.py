# SPDX-License-Identifier: Apache-2.0
"""Merging: what trained methods do to weights becomes part of them, and the model is upstream's again."""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from .sites import ALL_OPS, NORMS, POINTS, Method
from .tuning import find_backbone

#: The norm that a linear op reads.
_NORM_OF = dict(q='norm1', k='norm1', v='norm1', fc1='norm2', gate='norm2')
#: Points whose work cannot go into weights: all but those of linear layers, their inputs and norms.
POINTS_THAT_STAY = tuple(p for p in POINTS if p not in ('linear', 'input', 'norm'))


@dataclass
class MergeReport:
    """What :func:`merge` did; its text is the line that commands print.

    Attributes:
        merged: Names of the merged methods.
        max_difference: The largest difference on the probe; None if not verified.
        rounded: Type to which the merged weights were rounded, 'bfloat16' or 'float16'; '' for float32.
    """
    merged: List[str]
    max_difference: Optional[float] = None
    rounded: str = ''

    @property
    def folded(self) -> List[str]:
        """Earlier name of ``merged``."""
        return self.merged

    def __str__(self) -> str:
        names = ', '.join(self.merged) or 'nothing'
        rounded = f'; in float32, before the weights were rounded to {self.rounded}' if self.rounded else ''
        if self.max_difference is None:
            return f'merged {names}; not verified{rounded}'
        return f'merged {names}; max |difference| {self.max_difference:.1e} on a probe batch{rounded}'


def what_stays(methods: Dict[str, nn.Module]) -> Optional[Tuple[str, nn.Module]]:
    """Name and object of the first method that is no change of weights and cannot be merged; None: all can."""
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


def _check_shared_norm(petl: Mapping[str, Method], i: int, op: str) -> None:
    """Refuse to merge into a norm before both sublayers (DeiT3) what acts before one of them.

    Raises:
        ValueError: Names the method and the block.
    """
    for name, method in petl.items():
        if method.active('norm', i) and op in method.norm_ops(i) and not _through_norm(method):
            raise ValueError(f'{name} ({type(method).__name__}) cannot be merged: norm1 and norm2 of block {i} are one '
                             f'layer; leave norms out of its ops')


@torch.no_grad()
def merged_weights(backbone: nn.Module) -> List[Tuple[Tensor, Tensor]]:
    """Parameter or view (...) and new value (...) of everything that merging changes."""
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
            if block.norm1 is block.norm2:
                _check_shared_norm(petl, i, op)
                continue
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
    x = torch.randn(batch, channels, *sizes, generator=generator)
    x = x.to(weight.device, torch.float32 if backbone.petl.stored else weight.dtype)
    axes = backbone.petl.family.clip_axes
    return x if axes is None else axes(backbone, x)


def _features(backbone: nn.Module, x: Tensor) -> List[Tensor]:
    return _tensors(backbone(x))


def _tensors(out: Any) -> List[Tensor]:
    """The tensors of an output, however deep: mmaction2's MViT gives a list of map and class token per stage."""
    if isinstance(out, Mapping):
        out = list(out.values())
    if isinstance(out, (tuple, list)):
        return [tensor for part in out for tensor in _tensors(part)]
    return [out] if isinstance(out, Tensor) else []


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


@contextmanager
def _in_float32(backbone: nn.Module) -> Iterator[Optional[torch.dtype]]:
    """A backbone that came in half precision is float32 within the context, and rounded again behind it.

    Yields:
        The type that it has outside, None where that is no half precision.
    """
    halves = (torch.bfloat16, torch.float16)
    # Stored weights are wide already: what is half now came so.
    found = [(t, t.dtype) for t in (*backbone.parameters(), *backbone.buffers()) if t.dtype in halves]
    for tensor, _ in found:
        tensor.data = tensor.data.float()
    try:
        yield found[0][1] if found else None
    finally:
        for tensor, dtype in found:
            tensor.data = tensor.data.to(dtype)


def merge(model: nn.Module,
          verify: bool = True,
          probe: Optional[Tensor] = None,
          tolerance: float = 1e-3) -> MergeReport:
    """Merge all methods into the base, in list order, in place; afterwards the backbone has no extra parameter.

    The merged state dict loads with ``strict=True`` into the plain upstream backbone. Where the base came in half
    precision it is merged and compared in float32, and the merged weights are rounded to its type.

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
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 < tolerance < math.inf:
        raise ValueError(f'tolerance={tolerance!r:.80}: give a finite number above 0, relative to the largest output')
    if probe is not None and (not isinstance(probe, Tensor) or probe.dim() not in (4, 5)):
        shape = tuple(probe.shape) if isinstance(probe, Tensor) else repr(probe)[:80]
        raise ValueError(f'probe={shape}: give an input of the backbone, (B, 3, H, W) or (B, 3, T, H, W)')
    petl = backbone.petl
    staying = what_stays(dict(petl.items()))
    if staying:
        raise ValueError(f'{staying[0]} ({type(staying[1]).__name__}) is not a change of weights and cannot be merged; '
                         'the model is unchanged')
    before = petl.widen()
    try:
        with _in_float32(backbone) as rounded:
            if probe is not None and rounded:
                probe = probe.float()
            report = _write_merged(backbone, verify, probe, tolerance)
    except ValueError:
        petl.narrow(before)
        raise
    report.rounded = str(rounded).removeprefix('torch.') if rounded else ''
    return report


def _write_merged(backbone: nn.Module, verify: bool, probe: Optional[Tensor], tolerance: float) -> MergeReport:
    """Merge in float32; ``probe`` (B, 3, ...), see :func:`merge`."""
    petl = backbone.petl
    writes = merged_weights(backbone)
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
    return report
