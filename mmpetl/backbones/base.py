# SPDX-License-Identifier: Apache-2.0
"""The base by itself, the backbone without its methods: its state and its fingerprint."""

from typing import Dict, Optional

from torch import Tensor, nn

from ..weights.fingerprint import fingerprint


def base_state(backbone: nn.Module) -> Dict[str, Tensor]:
    """State of the backbone without its methods, by name."""
    return {k: v for k, v in backbone.state_dict().items() if not k.startswith('petl.')}


def base_fingerprint(backbone: nn.Module, state: Optional[Dict[str, Tensor]] = None) -> str:
    """Fingerprint of the frozen base parameters, of the backbone itself or of a state dict with its names."""
    # Tuned parameters change while training; they belong to the adapter and must not tell its base
    # apart.
    frozen = [(n, p) for n, p in backbone.named_parameters() if not n.startswith('petl.') and not p.requires_grad]
    if state is not None:
        return fingerprint({n: state[n] for n, _ in frozen})
    # Hashing a large base takes a second; the frozen parameters change only by being written, which their versions
    # count.
    key = tuple((n, p.data_ptr(), p._version) for n, p in frozen)
    # In a plain dict of petl: neither a buffer nor part of a file.
    cached = backbone.petl.base.get('cached')
    if cached is None or cached[0] != key:
        cached = backbone.petl.base['cached'] = (key, fingerprint({n: p.detach() for n, p in frozen}))
    return cached[1]
