# SPDX-License-Identifier: Apache-2.0
"""timm's Eva (EVA, EVA-02, DINOv3, PE): rotary embeddings, gated feed-forward networks; specialised in place."""

from dataclasses import replace
from typing import Any, List, Optional, Tuple

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope, PatchEmbed, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn

from ..recompute import recomputed
from ..sites import BlockSpec
from . import timm_vit
from .attention import Projections, Rotation
from .block import Linear, SitedBlock
from .cast import apply_linear, held
from .embed import linear_slice
from .foreign import SeparateProjections, check_type, no_mask, refuse, rotate_grid
from .form import TimmForm
from .timm_parts import SitedTimmPatchEmbed, check_mlp, mlp_ops, mlp_parameters, run_mlp


class RotaryAttention(SeparateProjections):
    """(B, N, C) -> (B, N, C), one fused or three projections, with a rotation of q and k."""

    LAYERS = dict(q='q_proj', k='k_proj', v='v_proj', proj='proj')

    @property
    def calls_qkv(self) -> bool:  # type: ignore[override]
        # With separate biases upstream adds them to the weight's product by F.linear, past the layer.
        return self.qkv is None or getattr(self, 'k_bias', None) is None

    def op_parameters(self, op: str) -> Tuple[Tensor, Optional[Tensor]]:
        """Weight (Cout, Cin) and bias (Cout) of q, k, v or proj."""
        if op == 'proj' or self.qkv is None:
            return super().op_parameters(op)
        if hasattr(self, 'k_bias'):  # a buffer of zeros: there is no key bias
            return linear_slice(self.qkv.weight, op), None if op == 'k' else getattr(self, f'{op}_bias')
        return Projections.op_parameters(self, op)

    def fused(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., 3 C)."""
        if getattr(self, 'k_bias', None) is None:
            return apply_linear(self.qkv, self.tap, 'qkv', x)
        found = held(self.tap, 'qkv')
        if found is None:
            found = self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias))
        return F.linear(x, *found)

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """x (B, N, C) -> queries, keys and values (B, N, C)."""
        return super().project(x) if self.qkv is None else Projections.project(self, x)

    def meet(self, op: str, x: Tensor) -> Tensor:
        """Queries or keys (B, N, C), normed per head -> same shape."""
        # Per head: the norm is as wide as a head.
        norm = self.q_norm if op == 'q' else self.k_norm
        return x if isinstance(norm, nn.Identity) else norm(x.unflatten(-1, (self.num_heads, -1))).flatten(-2)

    def rotation(self, *context: Any) -> Optional[Rotation]:
        (rope, ) = context
        if rope is None:
            return None
        return rotate_grid(lambda x: apply_rot_embed_cat(x, rope, half=self.rotate_half), rope.shape[-2])

    def forward(self, x: Tensor, rope: Optional[Tensor] = None, prompts: Optional[Tensor] = None) -> Tensor:
        """x (B, N, C), rope (..., tokens, 2 * head_dim) or None -> (B, N, C)."""
        # Some variants norm, and some gate, what attention gathered, before the projection.
        y = self.norm(self.mix(x, prompts, rope))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.proj_drop(self.output(y))


class SitedEvaAttention(RotaryAttention, EvaAttention):
    """Attention of EVA and EVA-02."""


class SitedAttentionRope(RotaryAttention, AttentionRope):
    """Attention of DINOv3 and PE."""


class SitedEvaBlock(SitedBlock, EvaBlock):
    """Block of timm's Eva."""

    # A rotation comes after the bias, by another angle for every key.
    key_bias_cancels = False

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """(B, N, C) -> (B, N, C); the context is the rotary embedding."""
        y = self.attn(h, context[0], prompts)
        return y if self.gamma_1 is None else recomputed(torch.mul, self.gamma_1, y)

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        y = run_mlp(self.tap, self.mlp, h)
        return y if self.gamma_2 is None else self.gamma_2 * y

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path1 if sub == 'attn' else self.drop_path2

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return mlp_parameters(self.mlp, op)

    def forward(self, x: Tensor, rope: Optional[Tensor] = None, attn_mask: Optional[Tensor] = None,
                is_causal: bool = False) -> Tensor:
        """x (B, N, C), rope (..., tokens, 2 * head_dim) or None -> (B, N, C)."""
        no_mask(attn_mask, self)
        if is_causal:
            raise ValueError(f'{type(self).__name__}: causal attention is not supported once methods are attached')
        return self.run(x, rope)


def _check(model: Eva) -> None:
    check_type('patch_embed', model.patch_embed, PatchEmbed)
    for i, block in enumerate(model.blocks):
        check_type(f'blocks.{i}', block, EvaBlock)
        check_type(f'blocks.{i}.attn', block.attn, EvaAttention, AttentionRope)
        check_mlp(f'blocks.{i}.mlp', block.mlp)
        attn = block.attn
        # The waist has one key per head; grouped ones have another width than q.
        if getattr(attn, 'num_kv_groups', 1) > 1:
            refuse(f'blocks.{i}.attn', attn, 'several of its heads share keys and values')
        if attn.num_heads * attn.head_dim != model.embed_dim:
            refuse(f'blocks.{i}.attn', attn, f'its heads are {attn.num_heads * attn.head_dim} wide together, the '
                   f'stream {model.embed_dim}')
    if model.patch_drop is not None:
        refuse('patch_drop', model.patch_drop, 'tokens that are dropped at random have no place in the grid')


def _key_bias(attn: nn.Module) -> bool:
    if attn.qkv is None:
        return attn.k_proj.bias is not None
    return attn.qkv.bias is not None


def _specs(model: Eva) -> List[BlockSpec]:
    return [
        BlockSpec(
            index=i,
            stage=0,
            dim=model.embed_dim,
            heads=block.attn.num_heads,
            ffn_dim=block.mlp.fc2.in_features,
            extra_tokens=model.num_prefix_tokens,
            grid=tuple(model.patch_embed.grid_size),
            patch=tuple(model.patch_embed.patch_size),
            key_bias=_key_bias(block.attn),
            ops=mlp_ops(block.mlp)) for i, block in enumerate(model.blocks)
    ]


class FormEva(TimmForm, Eva):
    """Eva as backbone."""


FAMILY = replace(
    timm_vit.FAMILY,
    name='timm_eva',
    points=timm_vit.FAMILY.points - {'side'},
    classes={
        EvaBlock: SitedEvaBlock,
        EvaAttention: SitedEvaAttention,
        AttentionRope: SitedAttentionRope,
        PatchEmbed: SitedTimmPatchEmbed
    },
    sides={},
    forms={Eva: FormEva},
    specs=_specs,
    check=_check,
)
