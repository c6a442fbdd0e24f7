# SPDX-License-Identifier: Apache-2.0
"""Backbones of timm and transformers from configs; both libraries are optional."""

import importlib
import inspect
from contextlib import contextmanager
from typing import Any, Iterator, Mapping, Optional

import torch
from torch import nn

from ..sites import nearest
from ..weights.io import load_file
from .attach import specs_of
from .family import FAMILIES, family_of
from .form import take_form

#: model_type of a config of transformers -> the class that is built.
TOWERS = {kind: name for entry in FAMILIES.values() for kind, name in entry.towers.items()}


def _library(name: str, wanted_by: str) -> Any:
    try:
        # Optional: mmpetl runs without either library.
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f'{wanted_by} needs the package {name}: pip install {name}') from None


@contextmanager
def _from_hub(name: str, local: str) -> Iterator[None]:
    """What a library says over many lines when the hub cannot be reached, or has no such name, in one."""
    try:
        yield
    # Both libraries raise huggingface_hub's errors, and transformers its own, all of them these.
    except OSError as error:
        why = str(error).split('\n')[0] or type(error).__name__
        raise ValueError(f'the weights of {name!r} cannot be had ({why[:200]}); {local}, or fill the cache of the hub '
                         'where there is a network, and set HF_HUB_OFFLINE=1 here') from error


def build_timm(model_name: str,
               pretrained: bool = False,
               checkpoint_path: str = '',
               in_channels: int = 3,
               out_type: str = 'pooled',
               init_cfg: Any = None,
               **kwargs: Any) -> nn.Module:
    """A model of timm as backbone, with the arguments of mmpretrain's TIMMBackbone.

    Args:
        model_name: Name in timm, such as 'vit_base_patch14_dinov2.lvd142m'.
        pretrained: Load timm's weights from the hub.
        checkpoint_path: Instead of the hub: the model's weight file, as timm's hub or the authors have it. A head in
            it is left out, and positions are resized, as from the hub.
        in_channels: Channels of the input.
        out_type: 'pooled' (the model's own pooling), 'cls_token', 'avg_featmap', 'featmap' or 'raw'.
        init_cfg: As of any MMEngine module.
        **kwargs: Further arguments of ``timm.create_model``; the model has no head.

    Raises:
        ValueError: timm is not installed, or does not know the model, or the model cannot be adapted, or its weights
            cannot be had.
        FileNotFoundError: If there is no such weight file.
    """
    timm = _library('timm', 'mmpetl.TIMM')
    if not timm.is_model(model_name):
        raise ValueError(f'timm has no model {model_name!r}' + nearest(model_name, timm.list_models()))
    if checkpoint_path:
        # timm's own reading of a path is strict: a head would be refused. This is how it reads what the hub has.
        kwargs['pretrained_cfg_overlay'] = dict(kwargs.get('pretrained_cfg_overlay') or {},
                                                state_dict=load_file(checkpoint_path)['state_dict'])
    # The head of an OpenMMLab model stands outside the backbone.
    settings = dict(in_chans=in_channels, num_classes=0, **kwargs)
    with _from_hub(model_name, "name a file of them: checkpoint_path='...'"):
        model = timm.create_model(model_name, pretrained=pretrained or bool(checkpoint_path), **settings)
    return _formed(model, out_type, init_cfg, f'timm/{model_name}')


def build_hf(model_name: str = '',
             pretrained: bool = True,
             config: Optional[Mapping[str, Any]] = None,
             out_type: str = 'pooled',
             init_cfg: Any = None,
             **kwargs: Any) -> nn.Module:
    """A vision tower of transformers as backbone.

    Args:
        model_name: Name on the hub, or a folder that ``save_pretrained`` wrote.
        pretrained: Load its weights; False takes its config alone.
        config: 'model_type' and arguments of that config. Without a name: what is built, with random weights. Beside a
            name: what the model of that name must be; without weights it is built from this, and no hub is asked.
        out_type: 'pooled' (pooled output, else class token, else mean), 'cls_token', 'avg_featmap', 'featmap' or 'raw'.
        init_cfg: As of any MMEngine module.
        **kwargs: Further arguments of ``from_pretrained`` (of the config without weights); ``dtype`` is float32 unless
            it is among them.

    Raises:
        ValueError: transformers is not installed, or the kind of model cannot be adapted, or it is another than
            ``config`` says, or it cannot be had.
    """
    transformers = _library('transformers', 'mmpetl.HF')
    if not (model_name or config):
        raise ValueError("mmpetl.HF needs model_name='...' or config=dict(model_type='...', ...)")
    settings = dict(config or {})
    kind = _known(settings.pop('model_type', None)) if config else None
    load = bool(model_name) and pretrained
    with _from_hub(model_name, "name a folder of save_pretrained: model_name='/...'"):
        if kind and not load:
            built = transformers.AutoConfig.for_model(kind, **settings, **kwargs)
        else:
            built = transformers.AutoConfig.from_pretrained(model_name, **({} if load else kwargs))
        # From our table, not from the config's own 'architectures', which may name anything.
        name = TOWERS[_known(built.model_type)]
        cls = getattr(transformers, name)
        # CLIP's config describes two towers.
        built = getattr(built, 'vision_config', built)
        if kind:
            _compare(model_name, dict(settings, tower=TOWERS[kind]), built, name)
        # A pooler that the checkpoint does not hold would be drawn at random.
        plain = (dict(add_pooling_layer=False) if 'add_pooling_layer' in inspect.signature(cls.__init__).parameters
                 else {})
        # float32 as every backbone of a config: transformers would take the type of the file.
        model = (cls.from_pretrained(model_name, **plain, **{'dtype': torch.float32, **kwargs}) if load
                 else cls(built, **plain))
    return _formed(model, out_type, init_cfg, model_name or name)


def _compare(model_name: str, stated: Mapping[str, Any], found: Any, tower: str) -> None:
    """Refuse a model that is not what the config says beside its name.

    Raises:
        ValueError: Naming the first value that differs.
    """
    for key, value in stated.items():
        own = tower if key == 'tower' else getattr(found, key, None)
        if own != value and not (isinstance(own, (list, tuple)) and list(own) == list(value)):
            raise ValueError(f'{model_name} has {key}={own!r}, and its config here says {value!r}: give it as it is, '
                             'or leave config out')


def _known(kind: Any) -> str:
    if kind not in TOWERS:
        raise ValueError(f'no tower of transformers with model_type {kind!r} can be adapted' +
                         nearest(str(kind), TOWERS))
    return kind


def _formed(model: nn.Module, out_type: str, init_cfg: Any, name: str) -> nn.Module:
    _, family = family_of(model)
    if type(model) not in family.forms:
        raise ValueError(f'{type(model).__name__} cannot be a backbone; known: '
                         f'{", ".join(c.__name__ for c in family.forms)}')
    return take_form(model, family.forms[type(model)], specs_of(model)[0], out_type, init_cfg, name)
