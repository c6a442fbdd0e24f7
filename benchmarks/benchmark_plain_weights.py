# SPDX-License-Identifier: Apache-2.0
"""The textbook forms of methods on weights, norms and inputs of linear ops, and of Mona; see ``benchmark_plain``."""

from typing import Tuple

import torch
import torch.nn.functional as F
from benchmark_plain import PlainMethod
from torch import Tensor


class PlainRepAdapter(PlainMethod):
    """z + s (B dropout(A z + a) + b) by convolutions of size one, the second grouped."""

    def norm(self, i: int, op: str, y: Tensor) -> Tensor:
        f = self.m.blocks[str(i)]['attn' if op == 'norm1' else 'ffn']
        z = y.transpose(1, 2)
        code = self.m.drop(F.conv1d(z, f.down.weight[..., None], f.down.bias))
        return (z + self.m.scales[i] * F.conv1d(code, f.up[..., None], f.up_bias, groups=f.groups)).transpose(1, 2)


class PlainARC(PlainMethod):
    """z + U (c * U^T z) + b."""

    def norm(self, i: int, op: str, y: Tensor) -> Tensor:
        shared, scale, bias = self.m.parts(i, 'attn' if op == 'norm1' else 'ffn')
        return y + self.m.drop(y @ (shared * scale)) @ shared.t() + bias


class PlainRLRR(PlainMethod):
    """y + s_left * W (s_right * x) + f; norms and embedding as SSF."""

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        f = self.m.blocks[str(i)][op]
        return y + F.linear(x * f['right'], self.m.frozen(i, op)[0]) * f['left'] + f['shift']

    def norm(self, i: int, op: str, y: Tensor) -> Tensor:
        f = self.m.blocks[str(i)][op]
        return y * f.scale + f.shift


class PlainAdaLoRA(PlainMethod):
    """y + s P (e * Q x)."""

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        f = self.m.blocks[str(i)][op]
        return y + self.m.scales[i] * F.linear(F.linear(self.m.drop(x), f.right) * f.values, f.left)


class PlainGPS(PlainMethod):
    """y + M x, M in its full size."""

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        f = self.m.blocks[str(i)][op]
        rows = torch.arange(len(f.columns))[:, None]
        return y + F.linear(x, f.values.new_zeros(len(rows), f.in_dims).index_put((rows, f.columns.long()), f.values))


class PlainSPT(PlainMethod):
    """y + M x with M in its full size, or a low-rank module."""

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        (cin, cout), (module, part), rank = self.m.dims[i, op], self.m.layout[i, op], self.m.rank
        values = self.m.values[part]
        if not module:
            matrix = values.new_zeros(cout * cin).index_put((self.m.index[part], ), values)
            return y + F.linear(x, matrix.view(cout, cin))
        down, up = values[:rank * cin].view(rank, cin), values[rank * cin:].view(cout, rank)
        return y + F.linear(F.linear(self.m.drop(x), down), up)


class PlainSCT(PlainMethod):
    """x_S + s (W x_S + b), x the stream behind a sublayer."""

    def branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if sub not in self.m.subs:
            return y
        f, stream = self.m.blocks[str(i)][sub], residual + y
        index, changed = f.index.long(), stream.clone()
        changed[..., index] = stream[..., index] + self.m.scales[i] * F.linear(stream[..., index], f.weight, f.bias)
        return changed - residual


class PlainResTuning(PlainMethod):
    """Further keys and values, and bottlenecks beside the sublayers."""

    def kv(self, i: int, batch: int) -> Tuple[Tensor, Tensor]:
        tokens = self.m.tokens[str(i)].unsqueeze(1).expand(-1, batch, -1, -1)
        if self.m.attn == 'prompt':
            k, v = (F.linear(tokens[0], *self.m.frozen(i, op)) for op in 'kv')
        else:
            k, v = tokens
        heads = self.m.specs[i].heads
        return k.unflatten(-1, (heads, -1)).transpose(1, 2), v.unflatten(-1, (heads, -1)).transpose(1, 2)

    def branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if sub not in self.m.adapters:
            return y
        f = self.m.blocks[str(i)][sub]
        return y + f.up(F.gelu(f.down(x if self.m.adapter_input == 'input' else y)))


class PlainGLoRA(PlainMethod):
    """(W * A + B) x + W c + d * b + e, all parts in their full size."""

    def __init__(self, m: torch.nn.Module) -> None:
        super().__init__(m)
        self.base = {(i, op): m.frozen(i, op) for i in m.layers for op in m.ops}

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        f, (weight, bias) = self.m.blocks[str(i)][op], self.base[i, op]
        prompt = F.linear((f.c_up @ f.c_down).flatten(), weight)
        y = y + F.linear(x, weight * (f.a_up @ f.a_down) + f.b_up @ f.b_down) + prompt + f.e
        return y if bias is None else y + f.d * bias


class PlainLoHa(PlainMethod):
    """y + s ((U_1 D_1) * (U_2 D_2)) x."""

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        f = self.m.blocks[str(i)][op]
        return y + self.m.scales[i] * F.linear(self.m.drop(x), (f.up1 @ f.down1) * (f.up2 @ f.down2))


class PlainLoKr(PlainMethod):
    """y + s (A (x) B) x."""

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        a, b = (s.whole if s.is_whole else s.up @ s.down for s in self.m.blocks[str(i)][op].values())
        return y + self.m.scale_of(i, op) * F.linear(self.m.drop(x), torch.kron(a.contiguous(), b.contiguous()))


def skew(upper: Tensor, size: int) -> Tensor:
    """Skew-symmetric matrices (r, size, size) of their upper triangles (r, n)."""
    q = upper.new_zeros(len(upper), size, size)
    rows, columns = torch.triu_indices(size, size, 1)
    q[:, rows, columns] = upper
    return q - q.transpose(1, 2)


class PlainOFT(PlainMethod):
    """x times the block-diagonal rotation, formed."""

    def input(self, i: int, op: str, x: Tensor) -> Tensor:
        q = skew(self.m.blocks[str(i)][op], self.m.block_size)
        one = torch.eye(self.m.block_size, device=q.device, dtype=q.dtype)
        return x @ torch.block_diag(*torch.linalg.solve(one - q, one + q, left=False))


class PlainBOFT(PlainMethod):
    """x times the product of the butterfly factors, each formed with its permutation."""

    def input(self, i: int, op: str, x: Tensor) -> Tensor:
        upper, size = self.m.blocks[str(i)][op]['upper'], self.m.block_size
        one, width, whole = torch.eye(size, device=x.device, dtype=upper.dtype), x.shape[-1], None
        for j, part in enumerate(upper):
            q = skew(part, size)
            factor = torch.block_diag(*torch.linalg.solve(one + q, one - q, left=False))
            if j:
                order = torch.arange(width).view(-1, 2, 2**j, size // 2).transpose(1, 2).flatten()
                back = torch.eye(width, device=x.device, dtype=factor.dtype)[order]
                factor = back.t() @ factor @ back
            whole = factor if whole is None else factor @ whole
        return x @ whole

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        scale, bias = self.m.blocks[str(i)][op]['scale'], self.m.frozen(i, op)[1]
        return y * scale if bias is None else (y - bias) * scale + bias


class PlainDiffFit(PlainMethod):
    """g y at the last op of a sublayer."""

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        return y * self.m.blocks[str(i)][op]


class PlainMona(PlainMethod):
    """Mona's equations one by one."""

    def branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        f, grid, stream = self.m.blocks[str(i)][sub], self.m.specs[i].grid, residual + y
        z = f.norm(stream) * f.scale_norm + stream * f.scale_stream
        z = F.linear(z, f.down.weight, f.down.bias)
        front = z.shape[1] - grid[0] * grid[1]
        parts = [self._convs(f, z[:, t, :, None, None]) for t in range(front)]
        parts.append(self._convs(f, z[:, front:].transpose(1, 2).unflatten(2, grid)))
        z = f.drop(F.gelu(torch.cat([p.flatten(2).transpose(1, 2) for p in parts], 1)))
        return y + F.linear(z, f.up.weight, f.up.bias)

    def _convs(self, f: torch.nn.Module, z: Tensor) -> Tensor:
        made: Tuple[Tensor, ...] = tuple(conv(z) for conv in f.convs)
        z = (made[0] + made[1] + made[2]) / 3 + z
        return z + F.conv2d(z, f.point.weight[..., None, None], f.point.bias)


MORE = dict(RepAdapter=PlainRepAdapter, ARC=PlainARC, RLRR=PlainRLRR, LoHa=PlainLoHa, LoKr=PlainLoKr, OFT=PlainOFT,
            GLoRA=PlainGLoRA, AdaLoRA=PlainAdaLoRA, GPS=PlainGPS, SCT=PlainSCT, ResTuning=PlainResTuning, SPT=PlainSPT,
            BOFT=PlainBOFT, DiffFit=PlainDiffFit, Mona=PlainMona)
