# SPDX-License-Identifier: Apache-2.0
"""How much a forward pass keeps for the backward pass."""

import gc
from contextlib import contextmanager, nullcontext
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _FusedAttention(torch.autograd.Function):
    """What a fused attention kernel keeps: queries, keys, values, bias, output and one number per query; nothing is
    computed."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor]) -> Tensor:
        # Kernels lay their output out as (B, N, heads, d), so that merging the heads copies nothing.
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, bias, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tuple[None, ...]:
        raise NotImplementedError('only what is kept is measured')


class _Fused(TorchFunctionMode):
    """Replaces scaled-dot-product attention, which on the meta device would be the plain form that keeps every
    attention map."""

    def __torch_function__(self,
                           function: Any,
                           types: Any,
                           args: Any = (),
                           kwargs: Optional[Dict[str, Any]] = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            return _FusedAttention.apply(q, k, v, kwargs.get('attn_mask'))
        return function(*args, **kwargs)


class _NumbersOnCPU(TorchFunctionMode):
    """Upstream reads its drop-path rates out of a ``torch.linspace``, which must therefore hold numbers."""

    def __torch_function__(self,
                           function: Any,
                           types: Any,
                           args: Any = (),
                           kwargs: Optional[Dict[str, Any]] = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return function(*args, **kwargs)


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules built in this context have shapes but no numbers; upstream's backbones can be built."""
    with torch.device('meta'), _NumbersOnCPU():
        yield


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, besides parameters, buffers, input and output.

    Each storage counts once, however many views of it are kept. On the meta device attention counts as a fused kernel
    keeps it. What a recomputed part of the model holds on to in order to run again counts too, although autograd itself
    does not know of it.

    Args:
        module: Module on any device; on the meta device nothing is computed.
        x: Its input (B, ...), on the same device.
    """
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers(), x)}
    kept: Dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor  # held, so that no other storage gets its address
        return tensor

    if x.is_meta:  # masks and indices that a shape is given once, and that stay, belong to no step
        with torch.no_grad():
            module(x)
    gc.freeze()  # what lives now is not looked at below
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(
                pack, lambda t: t), _Fused() if x.is_meta else nullcontext():
            out = module(x)
        gc.collect()  # what only cycles hold is not kept
        shown = {
            t.untyped_storage()._cdata
            for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor)
        }
        # issubclass: isinstance asks the object for its class, and lazy modules import themselves to answer
        held = [o for o in gc.get_objects() if issubclass(type(o), Tensor) and o.device == x.device]
    finally:
        gc.unfreeze()
    kept.update({key: t for t in held for key in [t.untyped_storage()._cdata] if key not in own and key not in shown})
    return sum(t.untyped_storage().nbytes() for t in kept.values())
