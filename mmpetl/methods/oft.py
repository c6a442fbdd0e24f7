# SPDX-License-Identifier: Apache-2.0
"""OFT: rotations of what frozen linear ops read.

Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", https://arxiv.org/abs/2306.07280, equation 3
and section 3.3::

    y = W R^T x + b,    R = diag(R_1, ..., R_r),    R_j = (I + Q_j) (I - Q_j)^-1        Q_j skew-symmetric

The angles between the neurons, rows of W, stay as they were. Each ``Q_j`` has block_size (block_size - 1) / 2 free
numbers, zero at the start, which is exact. ``block_share`` uses one block for all groups of channels. Qiu et al.,
"Orthogonal Finetuning Made Scalable", https://arxiv.org/abs/2506.19847: the inverse as the first terms of its Neumann
series, R = I + 2 Q + 2 Q^2 + ... + Q^k.
"""

from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..recompute import recomputed
from ..registry import METHODS
from ..sites import BlockSpec, Layers, Method, check_ops, positive, sum_as


class Skew(nn.Module):
    """Skew-symmetric matrices (r, b, b) of their upper triangles (r, b (b - 1) / 2), row by row, and their rotations.

    Args:
        block_size: b.
    """

    def __init__(self, block_size: int) -> None:
        super().__init__()
        # On the CPU although a device context may say meta: an index without numbers could not be written
        # below.
        rows, columns = torch.triu_indices(block_size, block_size, 1, device='cpu')
        place = torch.zeros(block_size, block_size, dtype=torch.long, device='cpu')
        # Where each place of the full matrix finds its number. The diagonal finds any, and its sign is 0.
        place[rows, columns] = place[columns, rows] = torch.arange(len(rows), device='cpu')
        here = torch.empty(()).device
        self.register_buffer('place', place.flatten().to(here), persistent=False)
        ones = torch.ones(block_size, block_size, device='cpu')
        self.register_buffer('sign', (ones.triu(1) - ones.tril(-1)).to(here), persistent=False)
        self.register_buffer('identity', torch.eye(block_size, device='cpu').to(here), persistent=False)
        self.register_buffer('minus', -torch.eye(block_size, device='cpu').to(here), persistent=False)

    def spread(self, upper: Tensor) -> Tensor:
        """Upper triangles (R, N) -> (R, D, D), symmetric: the signs are missing."""
        return upper.index_select(1, self.place).unflatten(1, self.sign.shape)

    def rotations(self, upper: Tensor, terms: int, dtype: Optional[torch.dtype] = None) -> Tensor:
        """upper (R, N) -> (I + Q) (I - Q)^-1, (R, D, D), or the first ``terms`` terms of its series where not 0; made
        in the type of ``upper`` and given in ``dtype``."""
        symmetric = self.spread(upper)
        if not terms:
            # (I + Q)(I - Q)^-1 = 2 (I - Q)^-1 - I, one inverse and no product. inv_ex does not wait for the GPU
            # to report singularity, and I - Q never is singular for a skew Q.
            inverse = torch.linalg.inv_ex(torch.addcmul(self.identity, symmetric, self.sign, value=-1)).inverse
            return sum_as(self.minus.expand_as(inverse), inverse, dtype, alpha=2.)
        q = symmetric * self.sign
        # Horner's rule: I + Q (2 I + Q (2 I + ... + Q)), whose last power has the factor 1.
        total = q
        # Powers of Q in half precision would leave the rotations visibly not orthogonal.
        with torch.autocast(q.device.type, enabled=False):
            for _ in range(terms - 3):
                total = torch.baddbmm(2 * q, q, total) if total is not q else torch.baddbmm(q, q, q, beta=2)
            return sum_as(self.identity.expand_as(q), q if terms == 2 else torch.baddbmm(q, q, total, beta=2), dtype)


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """x (..., C) times diag(R_1, ..., R_r) from the right; ``rotations`` (r or 1, b, b) with r b = C."""
    shared, size = len(rotations) == 1, rotations.shape[-1]
    if shared:
        return (x.unflatten(-1, (-1, size)) @ rotations[0]).flatten(-2)
    # Groups first: one batched product over all tokens, and not one small product per token.
    groups = x.reshape(-1, len(rotations), size).transpose(0, 1)
    return torch.bmm(groups, rotations).transpose(0, 1).reshape(x.shape)


@METHODS.register_module()
class OFT(Method):
    """Orthogonal fine-tuning of any of q, k, v, proj, fc1, fc2, gate.

    Args:
        specs: Blocks of the backbone.
        block_size: Side b of the blocks; it must divide the input width of every op.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        block_share: One block for all groups of channels of an op.
        neumann_terms: 0 inverts exactly, as published; k >= 2 takes the first k terms of the series, the form of the
            second paper, which uses 5.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``block_size`` < 2 or does not divide a width, ``neumann_terms`` is 1 or negative, an op is
            unknown, or a block lies outside the backbone.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 block_size: int = 32,
                 ops: Union[str, Sequence[str]] = 'qv',
                 block_share: bool = False,
                 neumann_terms: int = 0,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.ops, self.block_share = check_ops(ops, 'OFT: ops'), block_share
        self.block_size, self.neumann_terms = positive(block_size, 'block_size', 'OFT'), neumann_terms
        if neumann_terms < 0 or neumann_terms == 1:
            raise ValueError(f'OFT: neumann_terms must be 0 or >= 2, got {neumann_terms!r}')
        self.skew = Skew(block_size)
        self.blocks = self.for_blocks(lambda i: nn.ParameterDict({op: self._upper(i, op) for op in self.ops}))
        self.reset_parameters()

    def _upper(self, i: int, op: str) -> Tensor:
        width, size = self.specs[i].op_dims(op)[0], self.block_size
        if size < 2 or width % size:
            raise ValueError(f'OFT: block_size={size} must be >= 2 and divide {width}, the input width of {op} in '
                             f'block {i}')
        return torch.empty(1 if self.block_share else width // size, size * (size - 1) // 2)

    def input_ops(self, index: int) -> Tuple[str, ...]:
        return self.ops

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def rotations(self, i: int, op: str, dtype: Optional[torch.dtype] = None) -> Tensor:
        """R_1, ..., R_r of one op: (R, D, D) with D = block_size, and R = 1 where they are shared, in ``dtype``."""
        return self.skew.rotations(self.blocks[str(i)][op], self.neumann_terms, dtype)

    def on_input(self, i: int, op: str, x: Tensor) -> Tensor:
        """x (..., Cin) -> R^T x, (..., Cin)."""
        # Made in float32 and only then rounded: the inverse is the delicate part.
        return recomputed(rotate, x, self.rotations(i, op, x.dtype))

    def fold_input(self, i: int, op: str, weight: Tensor) -> Optional[Tensor]:
        """weight (Cout, Cin) -> (Cout, Cin)."""
        return rotate(weight, self.rotations(i, op).transpose(-2, -1).to(weight))
