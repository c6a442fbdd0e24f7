# SPDX-License-Identifier: Apache-2.0
"""Parameters of the base that an adapter trains, in the three ways in which a folder of peft holds them.

Biases of adapted layers (``bias='all'``), modules that are saved whole (``modules_to_save``), and where no method is
there layers that train themselves (``LN_TUNING``).
"""

import os
import re
from typing import Any, Collection, Dict, List, Mapping, Optional

import torch
from torch import Tensor, nn

from ..tuning import find_backbone, head_keys
from ..weights.errors import WeightFileError
from .peft_layers import plain_config
from .peft_names import CONFIG, same_layer

NORMS = 'LN_TUNING'
_PREFIX = 'base_model.model.'
#: What peft puts between a layer's name and its own parameters'.
_INSIDE = ('.base_layer.', '.ln_tuning_layers.')
#: Kinds whose config knows ``bias``.
_WITH_BIAS = ('LORA', 'ADALORA', 'VERA', 'OFT', 'BOFT')


def _plain_key(key: str) -> str:
    """The model's own name of a parameter."""
    for inside in _INSIDE:
        key = key.replace(inside, '.')
    return key.removeprefix(_PREFIX)


def norm_of(key: str) -> str:
    """Name of the layer that trains itself whose parameter a key of a folder names; '' of other keys."""
    before, inside, _ = key.partition(_INSIDE[1])
    return before.removeprefix(_PREFIX) if inside else ''


def names_of(backbone: nn.Module, given: str, keys: Collection[str]) -> List[str]:
    """Keys that a folder's name of a parameter means: itself, or the only one that differs by a prefix."""
    names = [given]
    own_names = backbone.petl.family.own_names
    if own_names is not None:
        # Names of transformers have changed between versions; the folder may have the old ones.
        names += list(own_names(backbone, {given: torch.empty(0)}))
    for name in names:
        if name in keys:
            return [name]
    # One name may have a prefix that the other lacks, as a classifier's model inside has.
    fitting = [key for key in keys if any(same_layer(key, name) for name in names)]
    # Two candidates would be a guess.
    return fitting if len(fitting) == 1 else []


class WholeParameters:
    """Where tensors (...) belong that are no factors: to the head, or to the base as parameters that it trains."""

    def __init__(self, model: nn.Module, folder: str, any_classes: bool) -> None:
        self.model, self.folder, self.any_classes = model, folder, any_classes
        self.backbone, self.prefix = find_backbone(model)
        self.state = {k: v for k, v in model.state_dict().items() if '.petl.' not in f'.{k}'}
        self.heads = set(head_keys(model))
        self.trained = {n for n, _ in model.named_parameters(remove_duplicate=False)}
        self.parameters = {n for n, _ in self.backbone.named_parameters() if not n.startswith('petl.')}

    def put(self, key: str, tensor: Tensor, tuned: Dict[str, Tensor], head: Dict[str, Tensor]) -> None:
        """Put one where it belongs: tensor (...) into ``tuned`` or ``head``.

        Raises:
            ValueError: If the model has no such parameter, or one of another shape.
        """
        given = _plain_key(key)
        for name in names_of(self.backbone, given, self.state):
            inside = name.removeprefix(self.prefix)
            if name in self.heads and self._fits(name, tensor):
                head[name] = tensor
                return
            if not name.startswith(self.prefix) or name in self.heads or self.state[name].shape != tensor.shape:
                continue
            if inside in self.parameters:
                tuned[inside] = tensor
                return
            if torch.equal(self.state[name].cpu(), tensor):
                return  # a buffer of a module that was saved whole
        other = next((name for name in names_of(self.backbone, given, self.state)
                      if self.state[name].shape != tensor.shape), None)
        if other is not None:
            raise ValueError(f'{self.folder}: {key} has the shape {tuple(tensor.shape)}, {other} of this model '
                             f'{tuple(self.state[other].shape)}: build the model that the adapter was trained on')
        raise ValueError(f'{self.folder}: {key} is neither a factor nor a parameter of the head of '
                         f'{type(self.model).__name__} or of its base')

    def check_saved(self, config: Mapping[str, Any], put: Collection[str]) -> None:
        """Look for modules that ``modules_to_save`` names and the folder does not hold whole.

        Args:
            config: Config of the folder.
            put: The model's names of the parameters that it holds.

        Raises:
            WeightFileError: If there is one, as peft opens no such folder.
        """
        for wanted in config.get('modules_to_save') or ():
            for name in self.state:
                owner = name.rpartition('.')[0]
                if f'.{wanted}.' in f'.{owner}.' and name not in put and name in self.trained:
                    raise WeightFileError(
                        os.path.join(self.folder, CONFIG), f'modules_to_save names {wanted!r:.60}, and the tensors '
                        f'lack {name}', 'save the adapter again, or take the name out')

    def _fits(self, name: str, tensor: Tensor) -> bool:
        own = self.state[name].shape
        # Another number of classes: the first dimension of weight and bias.
        free = self.any_classes and not (self.prefix and name.startswith(self.prefix))
        return own == tensor.shape or (free and len(own) == tensor.dim() > 0 and own[1:] == tensor.shape[1:])


def taken_too(model: nn.Module, saved: Collection[str], adapted: Collection[str]) -> Dict[str, Tensor]:
    """Parameters and buffers (...), by key of the model, of modules that peft takes for one of ``modules_to_save``, as
    their names end alike: it asks for these too, ``blocks.0.attn.q_norm`` where ``norm`` is saved.

    Args:
        model: Model with an attached backbone.
        saved: Names in ``modules_to_save``.
        adapted: Names of layers with factors.

    Raises:
        ValueError: If one of them is adapted or holds adapted layers, which peft would not adapt then.
    """
    found: Dict[str, Tensor] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        meant = next((one for one in saved if name.endswith(one) and name != one), None)
        if meant is None or '.petl.' in f'.{name}.':
            continue
        held = next((layer for layer in adapted if f'{layer}.'.startswith(f'{name}.')), None)
        if held:
            raise ValueError(f'the adapter trains the module {meant!r}, and peft takes {name!r} for it, whose name '
                             f'ends so, and leaves {held!r} without an adapter: give {meant!r} a name of its own')
        found.update({f'{name}.{key}': value for key, value in module.state_dict().items()})
    return found


def tuned_state(model: nn.Module, state: Dict[str, Tensor], config: Dict[str, Any],
                base: Optional[str]) -> Dict[str, Any]:
    """Add the tuned parameters of the base to what is written.

    Args:
        model: Model with an attached backbone.
        state: Factors (...) by key of the folder; gets the parameters.
        config: Config of the factors; without methods empty.
        base: Name of the base.

    Returns:
        The config of the folder.

    Raises:
        ValueError: If one trains that peft cannot save.
    """
    backbone, prefix = find_backbone(model)
    heads, values = set(head_keys(model)), model.state_dict()
    modules = dict(model.named_modules(remove_duplicate=False))
    adapted = set(config.get('target_modules') or ())
    owners: Dict[str, None] = {}
    biased = False
    for name, parameter in backbone.named_parameters():
        key = prefix + name
        if name.startswith('petl.') or not parameter.requires_grad or key in heads:
            continue
        owner, _, last = key.rpartition('.')
        if owner in adapted and last == 'bias' and config['peft_type'] in _WITH_BIAS:
            state[f'{_PREFIX}{owner}.base_layer.bias'] = values[key]
            biased = True
            continue
        # A module with others in it would be copied with the adapters inside, or is the model itself.
        if not owner or owner in adapted or owner not in modules or any(True for _ in modules[owner].children()):
            raise ValueError(f'the adapter also changes {key}, which a folder of peft cannot hold: it saves whole '
                             'modules without adapted layers in them, and biases of adapted layers where its kind has '
                             f'them ({", ".join(_WITH_BIAS)})')
        owners[owner] = None
    inside = '' if config else 'ln_tuning_layers.'
    for owner in owners:
        state.update({f'{_PREFIX}{owner}.{inside}{k[len(owner) + 1:]}': v for k, v in values.items()
                      if k.startswith(f'{owner}.')})
    if not config:
        # As one expression: of a list of names peft takes what ends so, and in timm more than the last norm does.
        return dict(plain_config(NORMS, base, owners), target_modules='|'.join(map(re.escape, owners)))
    return dict(config, **(dict(bias='all') if biased else {}), modules_to_save=sorted(owners) or None)
