# SPDX-License-Identifier: Apache-2.0
"""Frozen weights of a block under autocast: cast together by one kernel, not one by one where they are used."""

import threading
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sites import Tap, autocast_dtype, layer_norm
from .quantized import is_quantized

Linear = Tuple[Tensor, Optional[Tensor]]
#: Ops that backbones compute as one product; the parts of their copies stand in one tensor, under both names.
JOINED = {'qkv': ('q', 'k', 'v'), 'gate+fc1': ('gate', 'fc1')}
#: Autocast's precision -> what is copied for it; with base_dtype='bf16' under autocast of float16 that is bfloat16 too.
_OTHER = {torch.bfloat16: (torch.float32, torch.float16), torch.float16: (torch.float32, torch.bfloat16)}
#: Modules whose forward pass is ``F.linear`` of their weight and bias.
_PLAIN = ('torch.nn.modules.linear', 'mmcv.cnn.bricks.wrappers')


def hold(block: Any, x: Tensor, norms: Sequence[str] = ()) -> bool:
    """As :func:`hold_all` for one block, which is called with x (B, ..., C)."""
    return hold_all([block], x, norms)


def hold_all(blocks: Sequence[Any], x: Tensor, norms: Sequence[str] = ()) -> bool:
    """Make half-precision copies of all frozen weights of the ops of blocks for this thread, until :func:`release`, by
    one kernel.

    The values are those of autocast. Nothing happens where autocast is off, a compiler traces, or weights are trained,
    no plain parameters, or stored in that precision already, or where the block has its copies.

    Args:
        blocks: Sited blocks.
        x: What they are called with (B, ..., C), or any tensor of that device.
        norms: Which of 'norm1' and 'norm2' get copies too, where a block gets any.

    Returns:
        Whether copies were made.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    dtype = autocast_dtype(x)
    if dtype is None:
        return False
    sources: List[Tensor] = []
    copies: List[Tensor] = []
    gaps: List[Tensor] = []

    def copy(source: Optional[Tensor], target: Optional[Tensor]) -> Optional[Tensor]:
        if source is None or source.dtype not in _OTHER[dtype] or source.requires_grad:
            return source
        target = torch.empty_like(source, dtype=dtype) if target is None else target
        sources.append(source.detach())
        copies.append(target)
        return target

    held_by = []
    for block in blocks:
        before, made = len(copies), _of_block(block, dtype, copy, gaps)
        if len(copies) > before:
            for name in norms:
                norm = getattr(block, name)
                if isinstance(norm, nn.LayerNorm) and norm.bias is not None:
                    made[name] = copy(norm.weight, None), copy(norm.bias, None)
            held_by.append((block, made))
    if not copies:
        return False
    with torch.no_grad():
        torch._foreach_copy_(copies, sources)
        if gaps:
            torch._foreach_zero_(gaps)
    for block, made in held_by:
        block.tap.cast[threading.get_ident()] = made
    return True


def _of_block(block: Any, dtype: torch.dtype, copy: Any, gaps: List[Tensor]) -> Dict[str, Linear]:
    """Copies of a block's ops; none where it has them."""
    found = {op: block.op_parameters(op) for op in block.spec.ops}
    # Copies of 8- and 4-bit weights would be kept for the backward pass: these are read where they are used.
    if threading.get_ident() in block.tap.cast or any(is_quantized(weight) for weight, _ in found.values()):
        return {}
    made: Dict[str, Linear] = {}
    for name, ops in JOINED.items():
        if all(op in found for op in ops):
            made.update(_join(name, [found.pop(op) for op in ops], dtype, copy, gaps))
    made.update({op: (copy(weight, None), copy(bias, None)) for op, (weight, bias) in found.items()})
    return made


def _join(name: str, parts: List[Linear], dtype: torch.dtype, copy: Any, gaps: List[Tensor]) -> Dict[str, Linear]:
    """Copies of several ops, and of their joined form where all are frozen and of one shape; what is to be zero goes
    into ``gaps``."""
    ops = JOINED[name]
    weights, biases = [w for w, _ in parts], [b for _, b in parts]
    one = all(w.dtype in _OTHER[dtype] and not w.requires_grad and w.shape == weights[0].shape for w in weights)
    if not one or any(b is not None and (b.dtype not in _OTHER[dtype] or b.requires_grad) for b in biases):
        return {op: (copy(w, None), copy(b, None)) for op, w, b in zip(ops, weights, biases)}
    rows = len(weights[0])
    whole = weights[0].new_empty(len(ops) * rows, weights[0].shape[1], dtype=dtype)
    bias = None
    if any(b is not None for b in biases):
        bias = torch.empty(len(ops) * rows, dtype=dtype, device=whole.device)
    slots = bias.split(rows) if bias is not None else [None] * len(ops)
    gaps.extend(s for b, s in zip(biases, slots) if b is None and s is not None)  # VideoMAE's keys have none
    made = {op: (copy(w, t), copy(b, s)) for op, w, b, t, s in zip(ops, weights, biases, whole.split(rows), slots)}
    return {name: (whole, bias), **made}


def release(block: Any) -> None:
    """Drop this thread's copies of a block. Those that the backward pass reads live on with it."""
    if not torch.compiler.is_compiling() and block.tap.cast:
        block.tap.cast.pop(threading.get_ident(), None)


def held(tap: Tap, op: str, otherwise: Optional[Linear] = None) -> Optional[Linear]:
    """Weight and bias of an op as its product reads them: the copies, or else ``otherwise``.

    Args:
        tap: The block's tap.
        op: Op, or a name of :data:`JOINED`.
        otherwise: Without copies.
    """
    return tap.held(op) or otherwise


def normed(block: Any, name: str, x: Tensor) -> Tensor:
    """x (..., C) behind 'norm1' or 'norm2' of a block: in the precision of x where the block has copies of the weights,
    whereas a GPU's autocast gives float32."""
    norm = getattr(block, name)
    weight, bias = block.tap.held(name) or (None, None)
    if weight is None or bias is None or not x.dtype is weight.dtype is bias.dtype:
        return norm(x)
    return layer_norm(x, weight, bias, norm.eps)


def apply_linear(module: nn.Module, tap: Tap, op: str, x: Tensor) -> Tensor:
    """``module(x)``, (..., Cin) -> (..., Cout), with the copies of ``op`` where nothing but the weights is called."""
    found = held(tap, op)
    if found is None or not _plain(module):
        return module(x)
    return F.linear(x, *found)


def _plain(module: nn.Module) -> bool:
    """Whether calling the module is the product and nothing else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module).__module__ in _PLAIN and not any(hooks)
