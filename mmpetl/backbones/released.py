# SPDX-License-Identifier: Apache-2.0
"""Files that mmpretrain publishes for its own classes: names and sizes of one model.

These backbones are not converted from other libraries' files: the same weights in timm's or transformers' names are
used through ``mmpetl.TIMM`` and ``mmpetl.HF``.
"""

from typing import Callable, Dict

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..weights.resize import bias_window, resize_bias
from ..weights.vit import fit_positions

_ANCHOR = 'patch_embed.projection.weight'
State = Dict[str, Tensor]


def own_part(model: nn.Module, state: State, anchor: str = _ANCHOR) -> State:
    """The backbone's part of a file of a whole model, and the model's own buffers where the file's have other sizes.

    Args:
        model: Backbone of mmpretrain.
        state: State dict, with any prefix before the backbone's names.
        anchor: A name of the backbone's that no other part of a model has.

    Returns:
        A new dict.
    """
    prefix = min((k.removesuffix(anchor) for k in state if k.endswith(anchor)), key=len, default='')
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    # Indices and tables of angles follow from the size for which the model was built.
    kept = model.state_dict()
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in kept and not name.startswith('petl.') and (
                name not in inside or inside[name].shape != buffer.shape):
            inside[name] = buffer
    return inside


def _begin_norm(model: nn.Module, inside: State) -> None:
    """The norm behind the pooling begins at identity where a self-supervised file has none."""
    missing = [f'ln2.{part}' for part in ('weight', 'bias') if hasattr(model, 'ln2') and f'ln2.{part}' not in inside]
    for name in missing:
        inside[name] = torch.full_like(model.get_parameter(name), float(name.endswith('weight')))
    if missing:
        print_log(f'{type(model).__name__}: the file has no norm behind the pooling; it begins at identity', 'current')


def with_positions(class_token: bool) -> Callable[[nn.Module, State], State]:
    """``own_names`` of a family whose position table ``pos_embed`` (1, [1 +] N, C) is resized to the model's grid.

    Args:
        class_token: Whether the table has a row of the class token.
    """

    def take(model: nn.Module, state: State) -> State:
        inside, table = own_part(model, state), getattr(model, 'pos_embed', None)
        given = inside.get('pos_embed')
        if table is not None and given is not None and given.dim() == 3 and given.shape != table.shape:
            with_row = class_token and model.cls_token is not None
            inside['pos_embed'] = fit_positions(given, tuple(table.shape), with_row, tuple(model.patch_resolution))
        _begin_norm(model, inside)
        return inside

    return take


def with_shared_biases(model: nn.Module, state: State) -> State:
    """``own_names`` of BEiT: a table of biases that pre-training shares between blocks is copied to each, and tables
    are resized (bicubic) to the model's grid; the last three rows belong to the class token."""
    inside = with_positions(True)(model, state)
    shared = inside.get('rel_pos_bias.relative_position_bias_table')
    own = dict(model.named_parameters())
    for name, table in own.items():
        if not name.endswith('relative_position_bias_table'):
            continue
        given = inside.get(name, shared)
        if given is not None and given.dim() == 2 and given.shape[0] != table.shape[0] and given.shape[0] > 3:
            source = bias_window(len(given) - 3)
            given = torch.cat([resize_bias(given[:-3], source, tuple(model.patch_resolution)), given[-3:]])
        if given is not None:
            inside[name] = given
    return inside
