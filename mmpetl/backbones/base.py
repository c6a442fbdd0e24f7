# SPDX-License-Identifier: Apache-2.0
"""The base by itself, the backbone without its methods: its state and its fingerprint."""

from collections.abc import Mapping
from typing import Dict, Optional

import torch
from torch import Tensor, nn

from ..weights.fingerprint import fingerprint
from .base_dtype import as_stored


def base_state(backbone: nn.Module) -> Dict[str, Tensor]:
    """State of the backbone without its methods, by name."""
    return {k: v for k, v in backbone.state_dict().items() if not k.startswith('petl.')}


def base_fingerprint(backbone: nn.Module, state: Optional[Mapping[str, Tensor]] = None) -> str:
    """Fingerprint of the frozen base parameters, of the backbone itself or of a state dict with its names.

    Where weights are stored in fewer bits, that of the float32 weights of which they are roundings.
    """
    # Tuned parameters change while training; they belong to the adapter and must not tell its base
    # apart.
    frozen = [(n, p) for n, p in backbone.named_parameters() if not n.startswith('petl.') and not p.requires_grad]
    stored = backbone.petl.stored
    if state is not None:
        # In the type that they will have in the backbone, or would have without storing.
        return fingerprint({n: state[n].to(torch.float32 if n in stored else p.dtype) for n, p in frozen})
    if not stored:
        return stored_fingerprint(backbone)
    here, known = stored_fingerprint(backbone), backbone.petl.base.get('identity')
    if known is None or known[0] != here:
        # Another choice of frozen parameters, or weights of which nobody said what they were: the file may tell. Else
        # they are taken for float32 numbers with short mantissas.
        file = backbone.petl.file_state()
        right = file is not None and all(torch.equal(as_stored(file[n], p), p) for n, p in frozen)
        widened = {n: p.detach().float() if n in stored else p.detach() for n, p in frozen}
        known = backbone.petl.base['identity'] = (here, base_fingerprint(backbone, file if right else widened))
    return str(known[1])


def stored_fingerprint(backbone: nn.Module) -> str:
    """Fingerprint of the frozen base parameters as they are in memory."""
    frozen = [(n, p) for n, p in backbone.named_parameters() if not n.startswith('petl.') and not p.requires_grad]
    # Hashing a large base takes a second; the frozen parameters change only by being written, which their versions
    # count.
    key = tuple((n, p.data_ptr(), p._version) for n, p in frozen)
    # In a plain dict of petl: neither a buffer nor part of a file.
    cached = backbone.petl.base.get('cached')
    if cached is None or cached[0] != key:
        cached = backbone.petl.base['cached'] = (key, fingerprint({n: p.detach() for n, p in frozen}))
    return cached[1]
