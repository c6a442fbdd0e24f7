# SPDX-License-Identifier: Apache-2.0
"""A model of timm or transformers as backbone of an OpenMMLab model.

The object stays upstream's own, with upstream's parameter names; only what OpenMMLab asks of a backbone is added: a
tuple of features, and ``init_weights`` that loads ``init_cfg`` instead of drawing the base anew.
"""

from typing import Any, Optional, Tuple

from mmengine.model import initialize
from torch import Tensor, nn

from ..sites import BlockSpec, nearest

OUT_TYPES = ('pooled', 'cls_token', 'avg_featmap', 'featmap', 'raw')


class Form:
    """Mixin in front of an upstream class, see the module."""

    out_type: str = 'pooled'
    #: Spec of the first block.
    first: BlockSpec
    init_cfg: Optional[Any] = None

    def init_weights(self) -> None:
        """Load or draw what ``init_cfg`` says; methods get their initial values back afterwards."""
        if self.init_cfg:
            initialize(self, self.init_cfg)
        # Loading draws nothing anew, so the methods keep their values.
        if isinstance(self.init_cfg, dict) and self.init_cfg.get('type') == 'Pretrained':
            return
        # The initialisers have drawn every linear layer anew, also those of the methods.
        self.petl.init_weights()

    def feature(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, [T,] H, W) -> the feature that ``out_type`` names."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tuple[Tensor]:
        """(B, 3, [T, ] H, W) -> one feature: (B, C) pooled, cls_token, avg_featmap; (B, C, ...) featmap; (B, N, C)
        raw."""
        if self.petl.side_active():
            return (self.petl.side_feature(lambda: self.feature(x)), )
        return (self.feature(x), )


class TimmForm(Form):
    """Mixin: a model of timm as backbone."""

    def feature(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> (B, C), (B, N, C) for 'raw', (B, C, H', W') for 'featmap'."""
        tokens = self.forward_features(x)
        if self.out_type == 'pooled':
            return self.forward_head(tokens, pre_logits=True)
        if self.out_type == 'raw':
            return tokens
        if self.out_type == 'cls_token':
            return tokens[:, 0]
        # Class token and registers; they have no place on the map.
        extra = self.first.extra_tokens
        if self.out_type == 'avg_featmap':
            return tokens[:, extra:].mean(1)
        return tokens[:, extra:].transpose(1, 2).unflatten(2, self.map_of(x))

    def map_of(self, x: Tensor) -> Tuple[int, ...]:
        """The grid of the last tokens, (H', W'), for pixels x (B, 3, H, W)."""
        return self.patch_embed.dynamic_feat_size(x.shape[-2:])


def take_form(model: nn.Module, form: type, first: BlockSpec, out_type: str, init_cfg: Any, name: str) -> nn.Module:
    """Make an upstream object a backbone, in place.

    Args:
        model: Object of timm or transformers.
        form: Subclass of its class with :class:`Form`.
        first: Spec of its first block.
        out_type: One of :data:`OUT_TYPES`.
        init_cfg: As of any MMEngine module.
        name: What people call the weights; adapter files note it.

    Raises:
        ValueError: If ``out_type`` is unknown, or names a class token that the model does not have.
    """
    if out_type not in OUT_TYPES:
        raise ValueError(f'unknown out_type {out_type!r}' + nearest(out_type, OUT_TYPES))
    if out_type == 'cls_token' and not first.extra_tokens:
        raise ValueError(f"out_type='cls_token': {type(model).__name__} has no class token; take 'pooled' or "
                         "'avg_featmap'")
    # In place, as everything here: the caller's object becomes the backbone.
    model.__class__ = form
    model.first, model.out_type, model.init_cfg, model.base_name = first, out_type, init_cfg, name
    return model
