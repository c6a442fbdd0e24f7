# SPDX-License-Identifier: Apache-2.0
"""One adapter in memory."""

from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Tuple

from torch import Tensor, nn

from ..sites import Method, Tap


@dataclass
class Adapter:
    """One adapter of a bank.

    Attributes:
        methods: Methods by name, in order.
        configs: Their configs.
        tune: Patterns of base parameters that it changes.
        trunk: Mode of the base while training.
        tuned: Values of those base parameters while the adapter is not active.
        modules: What the model holds besides its backbone: head, neck.
        header: Header of the file that it came from; of a folder of peft its config.
        plan: Its taps for mixed batches, one per block, where they are kept; of adapters that nobody changes.
    """
    methods: Dict[str, Method]
    configs: Dict[str, Dict[str, Any]]
    tune: Tuple[str, ...]
    trunk: str
    tuned: Dict[str, Tensor] = field(default_factory=dict)
    modules: Dict[str, nn.Module] = field(default_factory=dict)
    header: Optional[Dict[str, Any]] = None
    plan: Optional[List[Tap]] = None

    def parts(self) -> Iterator[Tensor]:
        """Parameters and buffers (...) of its methods and modules."""
        for module in (*self.methods.values(), *self.modules.values()):
            yield from module.parameters()
            yield from module.buffers()

    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.numel() * t.element_size() for t in (*self.parts(), *self.tuned.values()))
