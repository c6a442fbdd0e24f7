# SPDX-License-Identifier: Apache-2.0
"""CLIP's projection of the image feature into the space that it shares with text."""

from typing import Mapping, Optional, Tuple

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from ..registry import MODELS

#: Names of the projection in published files, and whether it is stored transposed, as (E, D).
PUBLISHED_NAMES = {
    'neck.proj': False,  # this package
    'proj': False,  # the image tower alone
    'visual.proj': False,  # OpenAI, open_clip
    'visual_proj.proj': False,  # mmpretrain
    'visual_projection.weight': True  # Hugging Face: an nn.Linear
}


def find_projection(state: Mapping[str, Tensor]) -> Optional[Tensor]:
    """The projection (D, E) in a state dict of OpenAI, open_clip, Hugging Face or mmpretrain; None if it has none."""
    for name, transposed in PUBLISHED_NAMES.items():
        if name in state:
            return state[name].t() if transposed else state[name]
    return None


@MODELS.register_module()
class CLIPProjection(BaseModule):
    """feature (B, D) -> feature @ proj (B, E).

    Args:
        in_channels: Width D of the backbone.
        out_channels: Width E of the shared space.
        frozen: Whether the projection stays as it is, as in all parameter-efficient recipes; False trains it.
        checkpoint: CLIP weight file that holds it, normally the one that the backbone's ``init_cfg`` names. Without it
            the projection is random until a checkpoint of the whole model is loaded.
    """

    def __init__(self,
                 in_channels: int = 768,
                 out_channels: int = 512,
                 frozen: bool = True,
                 checkpoint: Optional[str] = None) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.empty(in_channels, out_channels))
        self.checkpoint = checkpoint
        # As CLIP's own: features of unit variance stay so.
        nn.init.normal_(self.proj, std=in_channels**-0.5)
        self.proj.requires_grad = not frozen
        self.register_load_state_dict_pre_hook(_complete)

    def init_weights(self) -> None:
        """Read the projection from ``checkpoint``.

        Raises:
            ValueError: If the file holds none, or one of another shape.
        """
        if self.checkpoint is not None:
            with torch.no_grad():
                self.proj.copy_(self._read())
        self._is_init = True  # upstream's flag: else a second call reads the file again

    def _read(self) -> Tensor:
        loaded = CheckpointLoader.load_checkpoint(self.checkpoint, 'cpu', 'silent')
        proj = find_projection(loaded.get('state_dict', loaded))
        if proj is None:
            raise ValueError(f'{self.checkpoint} holds no CLIP projection (looked for {", ".join(PUBLISHED_NAMES)})')
        if proj.shape != self.proj.shape:
            raise ValueError(
                f'{self.checkpoint} holds a projection {tuple(proj.shape)}, the neck expects '
                f'{tuple(self.proj.shape)}: set in_channels and out_channels of the neck')
        print_log(f'{self.checkpoint}: CLIP projection {tuple(proj.shape)}', 'current')
        return proj.float()  # OpenAI's files are in half precision

    def forward(self, feats: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        """Project the feature of the last stage, (B, D) -> ((B, E),)."""
        x = feats[-1] if isinstance(feats, (tuple, list)) else feats
        return (x @ self.proj, )


def _complete(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    """Weights without a projection (an adapter alone, a plain backbone) take it from ``checkpoint``: before testing,
    runners load a checkpoint but never call ``init_weights``."""
    if prefix + 'proj' in state_dict:
        return
    proj = find_projection(state_dict)
    if proj is None and module.checkpoint is not None:
        proj = module._read()
    if proj is not None:
        state_dict[prefix + 'proj'] = proj
