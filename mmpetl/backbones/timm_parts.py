# SPDX-License-Identifier: Apache-2.0
"""What the vision transformers of timm share: feed-forward networks, patch embedding, norms, forms of the output."""

from functools import partial
from typing import Optional, Tuple

from timm.layers import GluMlp, LayerNorm, Mlp, PatchEmbed, SwiGLU
from torch import Tensor, nn

from ..recompute import LARGE_PRODUCT, recomputed
from ..sites import ALL_OPS, OPS, Tap
from .block import Linear, feed_forward, gated_feed_forward, of_linear
from .cast import apply_linear
from .embed import SitedFinalNorm
from .foreign import check_type, refuse, table_with_shift


class SitedTimmPatchEmbed(PatchEmbed):
    """(B, 3, H, W) -> (B, N, C), or (B, H', W', C) where the image size is dynamic."""

    tap: Tap

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> (B, N, C) or (B, H', W', C)."""
        self.tap.run_time.grid = self.dynamic_feat_size(x.shape[-2:])
        return self.tap.norm('embed', super().forward(x))


class SitedTimmNorm(SitedFinalNorm, LayerNorm):
    """timm's LayerNorm in last place."""

    _fast_norm = False  # a plain LayerNorm becomes this class too


def embed_parameters(model: nn.Module) -> Linear:
    """Weight and bias of the last affine map of a patch embedding."""
    embed = model.patch_embed
    # Scale and shift merge into whatever affine map comes last.
    owner = embed.proj if isinstance(embed.norm, nn.Identity) else embed.norm
    return owner.weight, getattr(owner, 'bias', None)  # RMSNorm has none


def final_norm(model: nn.Module) -> Optional[nn.Module]:
    """The norm behind the blocks or behind the pooling."""
    # At most one of the two is real: before the pooling or behind it.
    return next((norm for norm in (model.norm, model.fc_norm) if not isinstance(norm, nn.Identity)), None)


def check_mlp(path: str, mlp: nn.Module) -> None:
    """Refuse a feed-forward network whose parts are not known.

    Raises:
        ValueError: Names its path.
    """
    check_type(path, mlp, Mlp, GluMlp, SwiGLU)
    if isinstance(mlp, GluMlp) and mlp.gate_last:
        refuse(path, mlp, 'its gate is the second half')


def mlp_ops(mlp: nn.Module) -> Tuple[str, ...]:
    """Ops of a block with this network."""
    return OPS if isinstance(mlp, Mlp) else ALL_OPS


def mlp_parameters(mlp: nn.Module, op: str) -> Linear:
    """Weight (Cout, Cin) and bias of fc1, fc2 or gate, as views of the parameters."""
    if op == 'fc2' or isinstance(mlp, Mlp):
        return of_linear(getattr(mlp, op))
    if isinstance(mlp, SwiGLU):
        return of_linear(mlp.fc1_g if op == 'gate' else mlp.fc1_x)
    # GluMlp computes both in one layer, gate first (gate_last is refused above).
    half = 0 if op == 'gate' else 1
    bias = mlp.fc1.bias
    return mlp.fc1.weight.chunk(2)[half], None if bias is None else bias.chunk(2)[half]


def run_mlp(tap: Tap, mlp: nn.Module, h: Tensor) -> Tensor:
    """The network with the points of the waist, (..., C) -> (..., C)."""

    def inner(mid: Tensor) -> Tensor:
        return mlp.norm(mlp.drop1(mid))

    if isinstance(mlp, Mlp):
        return feed_forward(tap, mlp.fc1, mlp.act, inner, mlp.fc2, mlp.drop2, h)
    gate, fc1 = (mlp_parameters(mlp, op) for op in ('gate', 'fc1'))
    if isinstance(mlp, SwiGLU) or tap.input('gate', h) is not h or tap.input('fc1', h) is not h:
        return mlp.drop2(gated_feed_forward(tap, gate, fc1, mlp.act, inner, mlp.fc2, h))
    # One product for both halves, as upstream computes it.
    y_gate, y = recomputed(partial(apply_linear, mlp.fc1, tap, 'gate+fc1'), h, level=LARGE_PRODUCT).chunk(2, -1)
    mid = recomputed(mlp.act, tap.linear('gate', h, y_gate)) * tap.linear('fc1', h, y)
    mid = tap.input('fc2', inner(mid))
    return mlp.drop2(tap.linear('fc2', mid, apply_linear(mlp.fc2, tap, 'fc2', mid)))


def pools(model: nn.Module) -> bool:
    """Whether the model averages its tokens."""
    return model.attn_pool is None and model.global_pool == 'avg'


def check_prompts(model: nn.Module, pooled: bool) -> None:
    """Refuse prompts that are to be pooled where the model does not average.

    Raises:
        ValueError: If so.
    """
    if pooled and not pools(model):
        raise ValueError(f"pool_prompts=True needs global_pool='avg', the model has {model.global_pool!r}")


def fold_embed_shift(model: nn.Module, shift: Tensor) -> Tuple[Tensor, Tensor]:
    """What holds a shift (C,) after a patch embedding without bias, and its new value: the position table (1, N, C).

    Raises:
        ValueError: If the model has no position table.
    """
    if model.pos_embed is None:
        raise ValueError('pos_embed is None: a shift after the bias-less patch embedding has no place to go')
    return table_with_shift(model.pos_embed, 0 if model.no_embed_class else model.num_prefix_tokens, shift)
