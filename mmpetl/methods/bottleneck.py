# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters: Adapter (Houlsby, Pfeiffer) and AdaptFormer.

Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", https://arxiv.org/abs/1902.00751: after both sublayers.
Pfeiffer et al., "AdapterFusion", https://arxiv.org/abs/2005.00247: after the feed-forward sublayer only.
Chen et al., "AdaptFormer", https://arxiv.org/abs/2205.13535, equation 3: parallel to the feed-forward sublayer::

    A(z) = W_up dropout(act(W_down z + b_down)) + b_up
    Adapter:      y <- y + scale * A(LN(y))          y: the sublayer's output; LN only with pre_norm
    AdaptFormer:  y <- y + scale * A(z)              z: the stream before the sublayer, or its normed form
"""

import math
from typing import Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import SUBS, BlockSpec, HalfCopies, Layers, Method, PerLayer, check_ops, nearest, positive

ACTIVATIONS = {'relu': nn.ReLU, 'gelu': nn.GELU}


class Bottleneck(nn.Module):
    """scale * (up(dropout(act(down(norm_in(x)))))), optionally normed at the end; (..., C) -> (..., C).

    Args:
        dim: Width C.
        mid_dims: Bottleneck width.
        act: 'relu' or 'gelu'.
        drop_rate: Dropout on the hidden units.
        scale: A number, or 'learnable' (a scalar parameter that starts at 1).
        norm: 'none', 'in' (LayerNorm of the input) or 'out' (LayerNorm of the scaled output).
    """

    def __init__(self, dim: int, mid_dims: int, act: str, drop_rate: float, scale: Union[float, str],
                 norm: str) -> None:
        super().__init__()
        self.down = nn.Linear(dim, mid_dims)
        self.act = ACTIVATIONS[act]()
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.up = nn.Linear(mid_dims, dim)
        # A plain number is no parameter and no buffer: it stays out of checkpoints, and configs may change
        # it.
        self.scale = nn.Parameter(torch.ones(1)) if scale == 'learnable' else float(scale)
        self.norm_in = nn.LayerNorm(dim) if norm == 'in' else nn.Identity()
        self.norm_out = nn.LayerNorm(dim) if norm == 'out' else nn.Identity()

    def reset_parameters(self, init: str) -> None:
        """'lora': Kaiming down, zero up (exact start); 'normal': both N(0, 0.02), zero biases."""
        if init == 'lora':
            # torch's own start of a Linear, named, because the published code calls it so.
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)
        else:
            nn.init.normal_(self.down.weight, std=0.02)
            nn.init.normal_(self.up.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        if isinstance(self.scale, nn.Parameter):
            nn.init.ones_(self.scale)
        for norm in (self.norm_in, self.norm_out):
            if isinstance(norm, nn.LayerNorm):
                norm.reset_parameters()

    def forward(self, x: Tensor, half: HalfCopies) -> Tensor:
        """x (..., C) -> (..., C); ``half`` gives the weights in the precision of the products."""
        code = recomputed(F.linear, recomputed(self.norm_in, x), half(self.down.weight), half(self.down.bias),
                          level=SMALL_PRODUCT)
        hidden = recomputed(self.act, code)
        # Scaling the small weights instead of the wide output: one pass less, and a learned scale need not keep that
        # output.
        weight, bias = half(self.up.weight), half(self.up.bias)
        # Not even a product by one: it would make a copy of the weight in every forward pass.
        if not (isinstance(self.scale, float) and self.scale == 1):
            weight, bias = weight * self.scale, bias * self.scale
        # The norm comes after the scale: 'out' norms what is added, and would take a scale out again if it
        # stood before.
        return self.norm_out(F.linear(self.drop(hidden), weight, bias))


def build_bottlenecks(method: Method, subs: Sequence[str], mid_dims: PerLayer, scale: PerLayer, act: str,
                      drop_rate: float, norm: str) -> nn.ModuleDict:
    """One :class:`Bottleneck` per adapted block and sublayer: ``blocks.<i>.<sub>``.

    Raises:
        ValueError: If a width is < 1, or the activation or the place of the norm is unknown.
    """
    owner = type(method).__name__
    if act not in ACTIVATIONS:
        raise ValueError(f'{owner}: unknown act {act!r}' + nearest(act, ACTIVATIONS))
    if norm not in ('none', 'in', 'out'):
        raise ValueError(f"{owner}: norm must be 'none', 'in' or 'out', got {norm!r}")
    mids, scales = method.spread(mid_dims, 'mid_dims', positive), method.spread(scale, 'scale')
    return method.for_parts(
        subs, lambda i, sub: Bottleneck(method.specs[i].dim, mids[i], act, drop_rate, scales[i], norm))


@METHODS.register_module()
class Adapter(Method):
    """Sequential bottleneck adapter.

    Args:
        specs: Blocks of the backbone.
        mid_dims: Bottleneck width; per layer where wanted.
        kind: 'houlsby' (after attention and feed-forward) or 'pfeiffer' (after the feed-forward only).
        scale: Factor of the branch, or 'learnable'.
        act: 'gelu' or 'relu'.
        drop_rate: Dropout on the hidden units.
        pre_norm: Own trainable LayerNorm on the adapter's input (the form of PEViT, with ``kind='pfeiffer'``,
            ``act='relu'``).
        init: 'lora' (zero up-projection: exact start) or 'normal' (N(0, 0.02) for both weights, the form of PEViT).
        layers: Adapted blocks.

    Raises:
        ValueError: If an option has an unknown value or ``mid_dims`` < 1.
    """

    tokenwise = True
    factor_words = ('learnable', )

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 mid_dims: PerLayer = 64,
                 kind: str = 'houlsby',
                 scale: PerLayer = 1.0,
                 act: str = 'gelu',
                 drop_rate: float = 0.,
                 pre_norm: bool = False,
                 init: str = 'lora',
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        kinds = {'houlsby': SUBS, 'pfeiffer': ('ffn', )}
        if kind not in kinds:
            raise ValueError(f'Adapter: unknown kind {kind!r}' + nearest(kind, kinds))
        if init not in ('lora', 'normal'):
            raise ValueError(f"Adapter: init must be 'lora' or 'normal', got {init!r}")
        self.subs, self.init = kinds[kind], init
        self.blocks = build_bottlenecks(self, self.subs, mid_dims, scale, act, drop_rate, 'in' if pre_norm else 'none')
        self.reset_parameters()

    def branch_subs(self, index: int) -> Tuple[str, ...]:
        return self.subs

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for bottleneck in block.values():
                bottleneck.reset_parameters(self.init)

    def on_branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """y (..., C) -> y + A(y), (..., C)."""
        return y + self.blocks[str(i)][sub](y, self.half)


@METHODS.register_module()
class AdaptFormer(Method):
    """Parallel, scaled bottleneck adapter beside a sublayer.

    Args:
        specs: Blocks of the backbone.
        mid_dims: Bottleneck width; per layer where wanted.
        scale: Factor of the branch, or 'learnable'.
        input: 'residual' (the stream before the sublayer's norm, as published) or 'normed' (the sublayer's input, the
            form of V-PETL).
        norm: LayerNorm inside the branch: 'none', 'in' (on its input) or 'out' (on its scaled output).
        act: 'relu' or 'gelu'.
        drop_rate: Dropout on the hidden units.
        inside_drop_path: False adds the branch after the block's drop-path (as published), True drops it with the
            sublayer (the form of V-PETL).
        subs: Adapted sublayers.
        layers: Adapted blocks.

    Raises:
        ValueError: If an option has an unknown value or ``mid_dims`` < 1.
    """

    tokenwise = True
    factor_words = ('learnable', )

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 mid_dims: PerLayer = 64,
                 scale: PerLayer = 0.1,
                 input: str = 'residual',
                 norm: str = 'none',
                 act: str = 'relu',
                 drop_rate: float = 0.1,
                 inside_drop_path: bool = False,
                 subs: Union[str, Sequence[str]] = 'ffn',
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if input not in ('residual', 'normed'):
            raise ValueError(f"AdaptFormer: input must be 'residual' or 'normed', got {input!r}")
        # Overrides the class attribute: taps sort methods by what the object says.
        self.input, self.inside_drop_path = input, inside_drop_path
        self.subs = check_ops(subs, 'AdaptFormer: subs', SUBS)
        for i in self.layers if input == 'normed' and 'attn' in self.subs else ():
            self.refuse_pooled_attention(i, "input='normed' is what attention reads")
        self.blocks = build_bottlenecks(self, self.subs, mid_dims, scale, act, drop_rate, norm)
        self.reset_parameters()

    def branch_subs(self, index: int) -> Tuple[str, ...]:
        return self.subs

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for bottleneck in block.values():
                # The only published start of AdaptFormer: the branch begins at zero.
                bottleneck.reset_parameters('lora')

    def on_branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """residual or x (..., C), y (..., C) -> y + A(residual or x), (..., C)."""
        return y + self.blocks[str(i)][sub](residual if self.input == 'residual' else x, self.half)
