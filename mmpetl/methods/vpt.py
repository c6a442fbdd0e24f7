# SPDX-License-Identifier: Apache-2.0
"""VPT: learned tokens in the input of every block (deep) or of the first one (shallow).

Jia et al., "Visual Prompt Tuning", https://arxiv.org/abs/2203.12119, equations 4 to 7::

    shallow:  x_1 = block_0([cls, P, patches]);  x_{i+1} = block_i(x_i)
    deep:     x_{i+1} = block_i([cls, P_i, patches])   (what block i-1 made of its own prompts is dropped)

Prompts are drawn from U(-v, v), v = sqrt(6 / (3 h w + D)), with the patch size (h, w) and the width D of the first
block.
"""

import math
from typing import Any, Dict, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import METHODS
from ..sites import BlockSpec, Layers, Method, PerLayer, nearest, positive

#: How prompts start: 'uniform' as published.
INITS = ('uniform', 'trunc_normal')
Pool = Union[None, bool, str]


def prompt_bound(spec: BlockSpec, dims: int) -> float:
    """Bound v of the prompts' uniform initialisation: the Xavier bound of the patch projection; a video patch counts as
    one frame's."""
    height, width = spec.patch[-2:]
    return math.sqrt(6. / (3 * height * width + dims))


def check_per_sample(specs: Sequence[BlockSpec], owner: str) -> None:
    """Refuse prompts that differ by sample where the keys of a window are shared.

    Raises:
        ValueError: If the backbone attends in windows.
    """
    # Windows of all samples are attended in one batch, with one set of extra keys.
    if specs[0].window is not None:
        raise ValueError(f'{owner}: drop_per_sample needs global attention; on Swin the published mask is one for the '
                         'batch: leave it out')


def check_choices(init: str, pool_prompts: Pool, owner: str) -> None:
    """Refuse an unknown start of the prompts, or an unknown pooling.

    Raises:
        ValueError: Naming the option.
    """
    if init not in INITS:
        raise ValueError(f'{owner}: unknown init {init!r}' + nearest(init, INITS))
    if pool_prompts not in (None, True, False, 'only'):
        raise ValueError(f"{owner}: pool_prompts must be True, False, 'only' or None, got {pool_prompts!r}")


def owners(sizes: Dict[int, Any], shared: bool, owner: str, what: str) -> Dict[int, str]:
    """Block -> key of the block that holds its parameters: its own, or the first one's where they are ``shared``.

    Args:
        sizes: Shape of the parameters by block, in order.
        shared: Whether all blocks use the first one's.
        owner: Method, for the error message.
        what: What is shared, for the error message.

    Raises:
        ValueError: If blocks that share differ in shape.
    """
    found = sorted(set(sizes.values()))
    if shared and len(found) > 1:
        raise ValueError(f'{owner}: {what} shared by all blocks need one shape, this backbone has '
                         f'{", ".join(map(str, found))}')
    return {i: str(next(iter(sizes)) if shared else i) for i in sizes}


def draw_prompts(prompts: Tensor, init: str, bound: float) -> Tensor:
    """Initial values of prompts (P, C), written into them: U(-bound, bound), or a truncated normal of 0.02."""
    if init == 'trunc_normal':
        return nn.init.trunc_normal_(prompts, std=0.02)
    return nn.init.uniform_(prompts, -bound, bound)


@METHODS.register_module()
class VPT(Method):
    """Visual prompt tuning.

    Args:
        specs: Blocks of the backbone.
        num_tokens: Prompts P per block; per layer where wanted.
        deep: Give every adapted block its own prompts; otherwise only the first adapted block, and they stay in the
            stream.
        drop_rate: Dropout on the prompts.
        drop_per_sample: Draw a mask for every sample, as published on ViT; otherwise one for the whole batch, which is
            cheaper and published on Swin.
        project: Train prompts of this smaller width and project them with one Linear shared by all blocks; None: no
            projection.
        init: 'uniform' as published, or 'trunc_normal' (0.02).
        shared: Use one set of prompts in all adapted blocks (the paper's ablation).
        pool_prompts: Whether a mean pooling after the last block includes the prompts; 'only': over them alone; None:
            the backbone's published form.
        stack: Allow a second prompt method beside this one.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``num_tokens`` or ``project`` < 1, ``project`` or ``shared`` is set on a backbone whose blocks
            differ in width, or an option is unknown.
    """

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 num_tokens: PerLayer = 10,
                 deep: bool = True,
                 drop_rate: float = 0.,
                 drop_per_sample: bool = False,
                 project: Optional[int] = None,
                 init: str = 'uniform',
                 shared: bool = False,
                 pool_prompts: Pool = None,
                 stack: bool = False,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        # Shallow prompts are given once and stay in the stream; later blocks then bring none.
        self.layers = self.layers if deep else self.layers[:1]
        check_choices(init, pool_prompts, 'VPT')
        self.init, self.pool_prompts, self.stack = init, pool_prompts, stack
        # Only one of the two drops: a mask per sample is drawn by the tap, which knows the batch.
        self.drop_rate, self.sample_drop_rate = (0., drop_rate) if drop_per_sample else (drop_rate, 0.)
        if drop_per_sample:
            check_per_sample(self.specs, 'VPT')
        tokens = self.spread(num_tokens, 'num_tokens', positive)
        if project is not None:
            positive(project, 'project', 'VPT')
            if len({self.specs[i].entry_dim for i in self.layers}) > 1:
                raise ValueError('VPT: project needs blocks of one width; leave it out on a backbone with stages')
        self.project = None if project is None else nn.Linear(project, self.specs[self.layers[0]].entry_dim)
        # With the narrow width where prompts are projected, as published.
        self.bound = prompt_bound(self.specs[0], project or self.specs[0].entry_dim)
        sizes = {i: (tokens[i], project or self.specs[i].entry_dim) for i in self.layers}
        self.held = owners(sizes, shared, 'VPT', 'prompts')
        self.prompts = nn.ParameterDict({
            key: nn.Parameter(torch.empty(sizes[int(key)])) for key in dict.fromkeys(self.held.values())
        })
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for prompts in self.prompts.values():
            draw_prompts(prompts, self.init, self.bound)
        if self.project is not None:
            self.project.reset_parameters()
            # Published for the projection; its bias keeps torch's default.
            nn.init.kaiming_normal_(self.project.weight, a=0, mode='fan_out')

    def num_prompts(self, index: int) -> int:
        return len(self.prompts[self.held[index]]) if index in self.held else 0

    def on_prompts(self, i: int) -> Tensor:
        """Prompts (1, P, C), projected and dropped out."""
        prompts = self.half(self.prompts[self.held[i]])
        if self.project is not None:
            prompts = self.half.linear(self.project, prompts)
        # After the projection: the tokens that enter are dropped, not what they are made of.
        return F.dropout(prompts, self.drop_rate, self.training)[None]
