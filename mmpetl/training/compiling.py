# SPDX-License-Identifier: Apache-2.0
"""``compile=True`` for runs: the blocks of the backbone are compiled, each without a break, and nothing around them.
Alike blocks may share a graph.

MMEngine compiles the whole training step: preprocessing, its autocast context (whose reading of version numbers torch
2.11 cannot trace), the model, the loss, the backward pass and the optimizer. Here the contexts are entered by ordinary
Python, outside of what is compiled.
"""

from typing import Any, Dict, Mapping, Union

import torch
from torch import nn

from ..backbones.quantized import NF4, is_quantized
from ..tuning import find_backbone

#: Graphs of a block: training and evaluation, with and without autocast.
FORMS = 4


def compile_blocks(model: nn.Module, options: Union[bool, Mapping[str, Any]]) -> int:
    """Compile the blocks of an attached backbone in place; names of parameters and state-dict keys stay.

    Args:
        model: Model with an attached backbone, wrapped for several processes or not.
        options: The config's ``compile``: True, or arguments of ``torch.compile``.

    Returns:
        How many blocks.

    Raises:
        ValueError: If nothing is attached to the model, or its base is stored in 4 bits.
    """
    settings: Dict[str, Any] = {} if isinstance(options, bool) else dict(options)
    blocks = list(find_backbone(model)[0].petl.blocks)
    if any(is_quantized(p) and p.form is NF4 for block in blocks for p in block.parameters()):
        raise ValueError("compile=True: a base with base_dtype='nf4' cannot be traced; give base_dtype='int8' or "
                         'compile=False')
    # All blocks share their code, by which torch counts graphs: after eight it would run the others uncompiled.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, FORMS * len(blocks))
    for block in blocks:
        block.compile(**settings)
    return len(blocks)


def compile_blocks_in(runner: Any) -> None:
    """Let a runner whose config says ``compile`` compile the blocks when MMEngine would compile the training step:
    after weights were loaded, before the first iteration.

    Args:
        runner: MMEngine's ``Runner``. One without this step, such as FlexibleRunner, is left alone.
    """
    options = runner.cfg.get('compile')
    if not options or not hasattr(runner, '_maybe_compile'):
        return

    def compile_now(target: str) -> None:
        """In place of MMEngine's step of the same place, which has no public way around it."""
        count = compile_blocks(runner.model, options)
        runner.logger.info(f'The {count} blocks of the backbone are compiled; the first iterations take longer')

    runner._maybe_compile = compile_now
