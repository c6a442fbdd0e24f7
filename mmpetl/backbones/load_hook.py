# SPDX-License-Identifier: Apache-2.0
"""What happens when weights enter an attached backbone, whoever loads them.

A load_state_dict pre-hook sees every way in: ``init_cfg``, ``load_from``, ``--resume``, ``tools/test.py``, inferencers
and plain ``load_state_dict``.

* Weights of the same names and shapes pass untouched.
* Weights of another published format are converted, or refused by name.
* An adapter without its base gets it: the weights already in the backbone if they have the right fingerprint, else
  those that the backbone's ``init_cfg`` names. Runners do not call ``init_weights`` before testing, so without this an
  adapter would sit on random weights.
"""

import logging
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from ..weights import convert
from ..weights.adapter_file import STATE_KEY, base_name
from ..weights.belongs import check_belongs
from .base import base_fingerprint, base_state
from .base_dtype import identify, incoming_identity, match_types, note_identity


def convert_for(backbone: nn.Module, state: Dict[str, Tensor], source: str = 'the state dict') -> Dict[str, Tensor]:
    """Map a state dict of any published format to the backbone's names and shapes.

    Raises:
        ValueError: If nothing matches, a backbone key stays missing, or a key is left unexplained. Weights of timm and
            transformers get these libraries' own present names, and fit or are refused.
    """
    family = backbone.petl.family
    if family.own_names is not None:
        renamed = family.own_names(backbone, state)
        # Weights of timm and transformers are never converted: they fit under their library's names or are
        # of another model.
        fitting = _fitting(backbone, renamed)
        if fitting is None:
            raise ValueError(_misfit(backbone, renamed, source))
        return fitting
    shapes = {k: tuple(v.shape) for k, v in base_state(backbone).items()}
    converted, report = convert(state, shapes, family.arch(backbone), grid=family.specs(backbone)[0].grid)
    # The match report says what was resized, made or left out; nobody should have to guess.
    print_log(f'{source}: {report}', 'current')
    # norms that such files do not have begin at identity, wherever the file is loaded
    converted.update({k: torch.full(shapes[k], float(k.endswith('weight'))) for k in report.initial})
    return converted


def _misfit(backbone: nn.Module, state: Dict[str, Tensor], source: str) -> str:
    own = base_state(backbone)
    odd = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
    here = tuple(own[odd[0]].shape)
    there = f'has shape {tuple(state[odd[0]].shape)}, not {here}' if odd[0] in state else 'is not there'
    return (f'{source}: {len(odd)} of {len(own)} tensors of {type(backbone).__name__} do not fit, {odd[0]!r} {there}; '
            'give weights of exactly this model')


def load_base(backbone: nn.Module) -> Optional[Dict[str, Tensor]]:
    """Base weights that the backbone's ``init_cfg`` names, converted; None if it names none."""
    cfg = getattr(backbone, 'init_cfg', None)
    if not (isinstance(cfg, dict) and cfg.get('type') == 'Pretrained'):
        return None
    loaded = CheckpointLoader.load_checkpoint(cfg['checkpoint'], 'cpu', 'silent')
    state = loaded.get('state_dict', loaded)
    prefix = cfg.get('prefix', '')
    if prefix:
        prefix = prefix if prefix.endswith('.') else prefix + '.'
        state = {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}
    return _fitting(backbone, state) or convert_for(backbone, state, str(cfg['checkpoint']))


def _fitting(backbone: nn.Module, state: Dict[str, Tensor]) -> Optional[Dict[str, Tensor]]:
    """The backbone's part of ``state`` if names and shapes are already its own, else None."""
    own = base_state(backbone)
    # Further keys do no harm: they belong to other parts of the model.
    if all(k in state and state[k].shape == v.shape for k, v in own.items()):
        return {k: state[k] for k in own}
    return None


def _base_for(backbone: nn.Module, header: Optional[Dict[str, Any]]) -> Dict[str, Tensor]:
    """Base weights on which an adapter file belongs.

    Raises:
        ValueError: If neither the backbone nor ``init_cfg`` has the weights on which the adapter was trained.
    """
    wanted = (header or {}).get('base') or {}
    current = base_state(backbone)
    # Without a fingerprint nothing can be compared: the base that init_cfg names is taken, unless
    # weights have come in.
    if header is None or not wanted.get('fingerprint'):
        base = None if backbone.petl.base.get('loaded') else load_base(backbone)
        return base or current
    here = base_fingerprint(backbone)
    if here == wanted['fingerprint']:
        return current
    base = load_base(backbone)
    if base is not None:
        here = base_fingerprint(backbone, base)
        if here == wanted['fingerprint']:
            return base
    name = backbone.init_cfg[
        'checkpoint'] if base is not None else 'the weights in the backbone (no init_cfg names others)'
    named = wanted.get('id') or wanted.get('checkpoint')
    mend = f'set model.backbone.init_cfg to {named!r}' if named else 'load those weights into the backbone first'
    raise ValueError(f'wrong base: the adapter was trained on {base_name(wanted)} (fingerprint '
                     f"{wanted['fingerprint'][:12]}), but {name!r} has fingerprint {here[:12]}; {mend}")


def _check_adapter_keys(backbone: nn.Module, given: Dict[str, Tensor], header: Optional[Dict[str, Any]]) -> None:
    # Compared before torch does, which would list every key of a wrong adapter.
    own = {k for k in backbone.state_dict() if k.startswith('petl.')}
    theirs = {k for k in given if k.startswith('petl.')}
    if header is None:
        return
    facts = backbone.petl.facts()
    for line in check_belongs(header, facts, force=backbone.petl.base.get('force', False)):
        print_log(line, 'current', logging.WARNING)
    if own == theirs:
        return
    names = [m['type'] for m in header['methods']] or ['none']
    here = [m['type'] for m in facts['methods']] or ['none']
    odd = sorted(own ^ theirs)[0]
    raise ValueError(
        f'the adapter holds {", ".join(names)}, the model has {", ".join(here)}, and they differ at {odd!r}: '
        'use the config with which the adapter was trained')


@contextmanager
def taken_as_it_is(model: nn.Module) -> Iterator[None]:
    """Within the context, backbones in ``model`` take state dicts as they are: nothing is converted, filled in or
    checked."""
    bases = [m.petl.base for m in model.modules() if hasattr(getattr(m, 'petl', None), 'taps')]
    for base in bases:
        base['as_it_is'] = True
    try:
        yield
    finally:
        for base in bases:
            del base['as_it_is']


def _load_hook(module: nn.Module, state_dict: Dict[str, Any], prefix: str, local_metadata: Dict[str, Any], *_:
               Any) -> None:
    if module.petl.base.get('as_it_is'):
        return
    own = base_state(module)
    # The hook sees the state dict of the whole model, the backbone's part under its prefix.
    given = {k[len(prefix):]: v for k, v in state_dict.items() if k.startswith(prefix)}
    methods_given = {k for k in given if k.startswith('petl.')}
    base_given = {k: v for k, v in given.items() if k not in methods_given}
    # Adapter files hand their header along as metadata of the state dict.
    header = local_metadata.get(STATE_KEY)
    if header is not None or (methods_given and not set(own) & set(base_given)):
        _check_adapter_keys(module, given, header)
        filled = _base_for(module, header)
        # Tuned parameters of the base come with the adapter and win over the base's.
        state_dict.update({prefix + k: v for k, v in filled.items() if prefix + k not in state_dict})
    elif _fitting(module, base_given) is None:
        # A published file has no prefix of ours: then everything in it is looked at.
        source = base_given or {k: v for k, v in state_dict.items() if isinstance(v, Tensor)}
        converted = convert_for(module, source)
        for key in source:
            state_dict.pop(prefix + key if base_given else key, None)
        state_dict.update({prefix + k: v for k, v in converted.items()})
    if not methods_given:
        # Weights of the base alone say nothing about the methods: they keep their values.
        state_dict.update({prefix + k: v for k, v in module.state_dict().items() if k.startswith('petl.')})
    if module.petl.stored:
        module.petl.base['incoming'] = incoming_identity(module, state_dict, prefix, local_metadata)
    # 'alone' is read after loading: methods whose start depends on the weights set it then.
    module.petl.base.update(loaded=True, alone=not methods_given, prefix=prefix)


def _refresh_hook(module: nn.Module, found: Any) -> None:
    match_types(module)  # load_state_dict(assign=True) brings the file's own types
    incoming = module.petl.base.pop('incoming', None)
    if isinstance(incoming, tuple):
        module.petl.base['identity'] = incoming
    elif incoming:
        identify(module, incoming)
    prefix = module.petl.base.pop('prefix', None)
    if prefix is not None:
        # All of the base was there. Upstream's own hook (Swin V2) takes out tables that follow from the window's size;
        # the model has them, so they are not missing.
        made = {prefix + name for name, _ in module.named_buffers(remove_duplicate=False)
                if not name.startswith('petl.')}
        found.missing_keys[:] = [key for key in found.missing_keys if key not in made]
    module.petl.refresh()
    if module.petl.base.pop('alone', False):
        module.petl.loaded()


def install_load_hook(backbone: nn.Module) -> None:
    """Register the hooks. Torch hands them the module that loads, so copies of a model hook into themselves."""
    handle = backbone.register_load_state_dict_pre_hook(_load_hook)
    # Before upstream's own hooks: they resize tables too, Swin's with a function that SciPy no longer has.
    backbone._load_state_dict_pre_hooks.move_to_end(handle.id, last=False)
    # A method that was pruned takes on the stored number of prompts, and taps must follow.
    backbone.register_load_state_dict_post_hook(_refresh_hook)
    backbone._register_state_dict_hook(note_identity)
