# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mmpetl.registry import MODELS


def test_clips_of_another_length_are_named():
    backbone = MODELS.build(dict(type='VideoMAE', img_size=32, patch_size=16, embed_dims=32, depth=1, num_heads=2,
                                 num_frames=4, petl=[dict(type='LoRA', rank=2)]))
    assert backbone(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 32)
    with pytest.raises(ValueError, match='clips of 8 frames, but the backbone takes 4: set clip_len of the sampling '
                       'transforms to 4, or num_frames of the backbone to 8'):
        backbone(torch.zeros(1, 3, 8, 32, 32))
