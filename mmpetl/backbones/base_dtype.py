# SPDX-License-Identifier: Apache-2.0
"""``base_dtype``: frozen weights that products read are stored in less than 32 bits.

``'bf16'`` stores them in the precision in which autocast reads them.

Half the memory of the base and no casts of its weights in a step, with the same bits: autocast would round the same
numbers in every pass. What else a base has stays float32, because autocast does not round it: norms, position tables,
class tokens, biases of windows, scales of layers; and the patch embedding. So does whatever trains
(docs/adr/0013-a-base-in-half-precision.md).

``'int8'`` and ``'nf4'`` store the matrices among them in 8 or 4 bits (:mod:`mmpetl.backbones.quantized`): a quarter or
an eighth of the memory, and another model by the rounding; biases stay as they are, and the precision of a pass is the
caller's (docs/adr/0018-a-base-in-eight-bits.md, docs/adr/0019-a-base-in-four-bits.md).
"""

from collections.abc import Mapping
from typing import Any, Dict, FrozenSet, Optional, Tuple, Union

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .quantized import INT8, NF4, QuantizedWeight, is_quantized, put

#: What people write -> what it means.
NAMES = {None: None, 'fp32': None, 'float32': None, torch.float32: None, 'bf16': torch.bfloat16,
         'bfloat16': torch.bfloat16, torch.bfloat16: torch.bfloat16, 'int8': INT8, INT8: INT8, 'nf4': NF4}
#: Layers whose weights and biases are read by products alone.
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
HALF = torch.bfloat16


def parse_base_dtype(value: Any) -> Optional[torch.dtype]:
    """torch.bfloat16, ``INT8`` or ``NF4``, or None for weights as they come.

    Raises:
        ValueError: If it is another precision; float16 is none in which a base may be stored without loss of range.
    """
    if not isinstance(value, (str, torch.dtype, type(None))) or value not in NAMES:
        raise ValueError(f"base_dtype={value!r:.80}: give 'bf16', 'int8' or 'nf4', or leave it out for weights as "
                         'they come')
    return NAMES[value]


def of_products(backbone: nn.Module) -> FrozenSet[str]:
    """Names of the base's parameters (...) that products read and nothing else."""
    found = {id(p) for module in backbone.modules() if isinstance(module, _PRODUCTS) for p in module.parameters(False)}
    # transformers reads the type of the patch embedding: pixels, and rotary angles with them, would be rounded to it.
    found -= {id(p) for p in backbone.petl.family.embed(backbone).parameters()}
    memory = _of_ops(backbone)
    return frozenset(n for n, p in backbone.named_parameters() if not n.startswith('petl.')
                     and (id(p) in found or p.untyped_storage()._cdata in memory))


def _of_ops(backbone: nn.Module) -> FrozenSet[int]:
    """Memory of the weights and biases of all ops."""
    # Some backbones keep biases beside their layers, and ops are views of fused weights.
    return frozenset(t.untyped_storage()._cdata for block in backbone.petl.blocks for op in block.spec.ops
                     for t in block.op_parameters(op) if t is not None)


def store(backbone: nn.Module, dtype: torch.dtype = HALF) -> None:
    """From now on the frozen weights of products are stored in ``dtype``; the fingerprint stays that of the weights as
    they are.

    Args:
        backbone: Attached backbone whose base is frozen as it will be.
        dtype: torch.bfloat16, or ``INT8`` or ``NF4`` for the matrices of linear layers.

    Raises:
        ValueError: If there is no float32 weight of a product.
    """
    parameters = dict(backbone.named_parameters())
    names = frozenset(n for n in of_products(backbone) if parameters[n].dtype is torch.float32)
    if dtype is not HALF:
        names &= _matrices(backbone)
    if not names:
        kind = next(p.dtype for n, p in parameters.items() if not n.startswith('petl.'))
        raise ValueError(f'base_dtype={name_of(dtype)!r}: {type(backbone).__name__} has no float32 weights to store, '
                         f'its first parameter is {str(kind).removeprefix("torch.")}: leave base_dtype out')
    on_meta = any(p.is_meta for p in parameters.values())
    known = None if on_meta else backbone.petl.base_fingerprint()
    backbone.petl.stored, backbone.petl.stored_as = names, dtype
    match_types(backbone)
    if known:
        identify(backbone, known)


def name_of(dtype: torch.dtype) -> str:
    """What a user writes for it."""
    return {INT8: 'int8', NF4: 'nf4'}.get(dtype, 'bf16')


def _matrices(backbone: nn.Module) -> FrozenSet[str]:
    """Names of the weights (Cout, Cin) of linear layers, and of ops that are no layers."""
    found = {id(m.weight) for m in backbone.modules() if isinstance(m, nn.Linear)}
    memory = _of_ops(backbone)
    return frozenset(n for n, p in backbone.named_parameters()
                     if p.dim() == 2 and (id(p) in found or p.untyped_storage()._cdata in memory))


def as_stored(value: Tensor, parameter: Tensor) -> Tensor:
    """What a parameter would hold if ``value`` were written into it; both (...)."""
    value = value.to(parameter.device)
    if isinstance(parameter, QuantizedWeight):
        return QuantizedWeight.of(value, parameter.form).full()
    return value.to(parameter.dtype)


def match_types(backbone: nn.Module) -> None:
    """Stored weights that are frozen get their few bits, those that train float32; in bfloat16 in place, so that
    optimizers and copies of the module keep their parameters."""
    stored = backbone.petl.stored
    if stored and backbone.petl.stored_as is not HALF:
        _match_quantized(backbone, stored)
        return
    for name, parameter in backbone.named_parameters() if stored else ():
        wanted = torch.float32 if parameter.requires_grad else HALF
        if name in stored and parameter.dtype is not wanted:
            parameter.data, parameter.grad = parameter.data.to(wanted), None


def _place(backbone: nn.Module, name: str) -> Tuple[nn.Module, str]:
    """Module that owns a parameter, and its name there."""
    *path, last = name.split('.')
    module: Any = backbone
    for part in path:
        module = module._modules[part]  # a block may have a method of the same name
    return module, last


def _match_quantized(backbone: nn.Module, stored: FrozenSet[str]) -> None:
    for name, parameter in list(backbone.named_parameters()):
        if name in stored and is_quantized(parameter) == parameter.requires_grad:
            made = put(*_place(backbone, name), parameter, backbone.petl.stored_as)
            made.requires_grad = parameter.requires_grad


#: Fingerprint of the weights as they are stored, and of the float32 ones of which they are roundings.
Identity = Tuple[str, str]


def identify(backbone: nn.Module, fingerprint: str) -> None:
    """The float32 weights of which the stored ones are roundings have this fingerprint."""
    backbone.petl.base['identity'] = (backbone.petl.stored_fingerprint(), fingerprint)


def incoming_identity(backbone: nn.Module, state: Mapping[str, Tensor], prefix: str,
                      metadata: Mapping[str, Any]) -> Union[None, str, Identity]:
    """Fingerprint of float32 weights that are about to be loaded, or what a checkpoint with stored weights carries.

    Args:
        backbone: Attached backbone with stored weights.
        state: What is loaded, (...) by name.
        prefix: Of the backbone's names.
        metadata: Of the state dict's part that is the backbone's.

    Returns:
        None where the weights are those that are known, or say themselves what they are.
    """
    petl = backbone.petl
    given: Dict[str, Tensor] = {n[len(prefix):]: t for n, t in state.items() if n.startswith(prefix)}
    frozen = [n for n, p in backbone.named_parameters() if not n.startswith('petl.') and not p.requires_grad]
    if any(n not in given for n in frozen):
        return None
    noted = metadata.get(IDENTITY_KEY)
    if not isinstance(noted, (list, tuple)) or len(noted) != 2 or not all(isinstance(t, str) for t in noted):
        noted = None
    if any(given[n].dtype is not HALF for n in frozen if n in petl.stored):
        # 8- and 4-bit weights stand in state dicts as the float32 weights that they mean.
        found = petl.base_fingerprint(given)
        return (noted[0], noted[1]) if noted and petl.stored_as is not HALF and noted[0] == found else found
    if noted is None:
        return None
    return noted[0], noted[1]  # compared with the bits before it is believed


#: Where state dicts say of which float32 weights theirs are roundings, beside torch's versions of modules.
IDENTITY_KEY = 'mmpetl_base'


def note_identity(backbone: nn.Module, state: Any, prefix: str, metadata: Dict[str, Any]) -> None:
    """State-dict hook: a checkpoint with stored weights says of which float32 weights they are roundings; 8- and 4-bit
    weights (Cout, Cin) stand there as float32 ones."""
    for name in backbone.petl.stored:
        if is_quantized(state.get(prefix + name)):
            state[prefix + name] = state[prefix + name].full()
    if backbone.petl.base.get('identity'):
        metadata[IDENTITY_KEY] = list(backbone.petl.base['identity'])


def widen(backbone: nn.Module, file: Optional[Mapping[str, Tensor]]) -> None:
    """Frozen weights of an attached backbone become float32 again, in place; a log line says where they come from.

    Args:
        backbone: With or without stored weights.
        file: State of the base's file, (...) by name, if there is one; its values are taken if it is the right one.
    """
    petl = backbone.petl
    if not petl.stored:
        return
    on_meta = any(p.is_meta for p in backbone.parameters())
    right = file is not None and not on_meta and petl.base_fingerprint(file) == petl.base_fingerprint()
    for name, parameter in list(backbone.named_parameters()):
        if name in petl.stored and is_quantized(parameter):
            made = put(*_place(backbone, name), parameter)
            if right:
                made.data.copy_(file[name])  # type: ignore[index]
        elif name in petl.stored and parameter.dtype is HALF:
            value = file[name] if right else parameter.data  # type: ignore[index]
            parameter.data = value.to(parameter.device, torch.float32, copy=True)
    petl.stored = frozenset()
    petl.base.pop('identity', None)
    if not on_meta:
        print_log(f'base_dtype={name_of(petl.stored_as)!r}: base weights are float32 again, ' +
                  ('as the file of the base has them' if right else 'with the bits of each number that were stored'),
                  'current')


def narrow(backbone: nn.Module, names: FrozenSet[str], identity: Any) -> None:
    """Undo :func:`widen`: ``names`` are stored in bfloat16 again."""
    backbone.petl.stored = names
    match_types(backbone)
    if identity:
        backbone.petl.base['identity'] = identity


def came_half(backbone: nn.Module) -> Optional[torch.dtype]:
    """torch.bfloat16 or torch.float16 where the base came so (as transformers loads a checkpoint of that type) and
    methods that act stay float32; else None."""
    if not backbone.petl.enabled or backbone.petl.stored:
        return None
    dtype = next(backbone.parameters()).dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    return dtype if any(p.dtype is torch.float32 for p in backbone.petl.parameters()) else None


def needs_autocast(backbone: nn.Module) -> bool:
    """Whether weights are in half precision beside methods that are not, and autocast is off where the backbone is."""
    kind = next(backbone.parameters()).device.type
    halved = bool(backbone.petl.stored) and backbone.petl.stored_as is HALF or came_half(backbone) is not None
    return halved and torch.amp.is_autocast_available(kind) and not torch.is_autocast_enabled(kind)


class OwnAutocast:
    """Forward passes of a backbone with half-precision weights that nobody put under autocast run under their own."""

    def __init__(self) -> None:
        self.entered: Any = None
        #: Type of the outputs: that of the base.
        self.outputs = torch.float32

    def enter(self, backbone: nn.Module) -> None:
        """Begin, where the backbone has half-precision weights and autocast is off."""
        if needs_autocast(backbone):
            came = came_half(backbone)
            self.outputs = came or torch.float32
            self.entered = torch.autocast(next(backbone.parameters()).device.type, came or HALF)
            self.entered.__enter__()

    def leave(self, out: Any) -> Any:
        """End; the outputs (...) are float32 where weights are stored, as those of a float32 base, and of the base's
        type where it came in half precision, as what stands behind it did."""
        if self.entered is None:
            return out
        self.entered.__exit__(None, None, None)
        return _as(out, self.outputs)


def _as(out: Any, dtype: torch.dtype) -> Any:
    """An output (...) with its floating tensors in ``dtype``."""
    if isinstance(out, Tensor):
        return out.to(dtype) if out.is_floating_point() and out.dtype is not torch.float64 else out
    if isinstance(out, dict):
        for key in list(out):
            out[key] = _as(out[key], dtype)
        return out
    if isinstance(out, (tuple, list)) and not hasattr(out, '_fields'):
        return type(out)(_as(part, dtype) for part in out)
    return out
