# SPDX-License-Identifier: Apache-2.0
"""SSF: scale and shift every feature after every operation.

Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
https://arxiv.org/abs/2210.08823, equation 2::

    y <- scale * y + shift      per channel, scale ~ N(1, 0.02), shift ~ N(0, 0.02)

after the patch embedding, both norms, q, k, v, proj, fc1 (before the activation), fc2 and the final norm. All of it
merges into the weights of the operation before.
"""

from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..recompute import recomputed
from ..registry import METHODS
from ..sites import ALL_OPS, NORMS, BlockSpec, Layers, Method, check_ops, scale_shift


class ScaleShift(nn.Module):
    """``scale`` and ``shift`` of C channels; (..., C) -> (..., C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Filled by the method, which knows the standard deviation.
        self.scale = nn.Parameter(torch.empty(dim))
        self.shift = nn.Parameter(torch.empty(dim))

    def forward(self, y: Tensor) -> Tensor:
        """y (..., C) -> (..., C)."""
        # The gradient of the scale needs y. Activation and attention need the result, which is therefore made from y
        # again.
        return recomputed(scale_shift, y, self.scale, self.shift)


class OnOpsAndNorms(Method):
    """What acts on the ``ops`` of a block and on the norms beside them."""

    ops: Tuple[str, ...]

    def linear_ops(self, index: int) -> Tuple[str, ...]:
        """Adapted ops of a block."""
        return tuple(op for op in self.specs[index].ops if op in self.ops)

    def norm_ops(self, index: int) -> Tuple[str, ...]:
        """Adapted norms of a block, and the patch embedding, which counts as one."""
        # Norms that exist once belong to the block next to them: adapting the last block alone brings the
        # final norm along.
        owners = {'embed': 0, 'final': len(self.specs) - 1}
        return tuple(op for op in NORMS if op in self.ops and owners.get(op, index) == index)


@METHODS.register_module()
class SSF(OnOpsAndNorms):
    """Scale and shift.

    Args:
        specs: Blocks of the backbone.
        ops: Where to act: any of q, k, v, proj, fc1, fc2, gate, embed (patch embedding, with block 0), norm1, norm2 and
            final (final norm, with the last block); all by default, as published.
        std: Standard deviation of the initial values around 1 and 0; 0 starts exactly at the frozen network.
        layers: Adapted blocks.

    Raises:
        ValueError: If an op is unknown, ``std`` is negative, or no chosen op belongs to the adapted blocks.
    """

    # It acts on every op, and each needs its input for the gradient of the scale: more than full
    # fine-tuning keeps.
    recomputes = True
    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 ops: Union[str, Sequence[str]] = ALL_OPS + NORMS,
                 std: float = 0.02,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if std < 0:
            raise ValueError(f'SSF: std must be >= 0, got {std!r}')
        self.ops, self.std = check_ops(ops, 'SSF: ops', ALL_OPS + NORMS), std
        self.blocks = self.for_blocks(lambda i: nn.ModuleDict(
            {op: ScaleShift(self.specs[i].op_dims(op)[1]) for op in self.linear_ops(i) + self.norm_ops(i)}))
        if not any(len(block) for block in self.blocks.values()):
            raise ValueError(f"SSF: ops {', '.join(self.ops)} do not occur in blocks {self.layers}")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, ScaleShift):
                nn.init.normal_(module.scale, 1., self.std)
                nn.init.normal_(module.shift, 0., self.std)

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """y (..., Cout) -> scale * y + shift, (..., Cout)."""
        return self.on_part(self.part(i, op), x, y)

    def on_norm(self, i: int, op: str, y: Tensor) -> Tensor:
        """y (..., C) -> scale * y + shift, (..., C)."""
        return self.on_part(self.part(i, op), y, y)

    def part(self, i: int, op: str) -> nn.Module:
        return self.blocks[str(i)][op]

    def on_part(self, part: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y (..., C) -> scale * y + shift of one place, (..., C)."""
        return part(y)

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """``weight`` (Cout, ...) of a linear op or patch embedding, or (C,) of a norm; a missing bias counts as
        zero."""
        if str(i) not in self.blocks or op not in self.blocks[str(i)]:
            return weight, bias
        scale, shift = self.blocks[str(i)][op].scale.to(weight), self.blocks[str(i)][op].shift.to(weight)
        # The weight of a patch embedding has further axes behind the outputs.
        return weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift if bias is None else bias * scale + shift
