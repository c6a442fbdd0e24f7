# SPDX-License-Identifier: Apache-2.0
"""Backbones of timm and transformers from configs; both libraries are optional."""

import importlib
import inspect
from typing import Any, Mapping, Optional

from torch import nn

from ..sites import nearest
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


def build_timm(model_name: str,
               pretrained: bool = False,
               checkpoint_path: str = '',
               in_channels: int = 3,
               out_type: str = 'pooled',
               init_cfg: Any = None,
               **kwargs: Any) -> nn.Module:
    """A model of timm as backbone, with the arguments of mmpretrain's TIMMBackbone.

    Args:
        model_name: Name in timm, such as 'vit_base_patch14_dinov2'.
        pretrained: Load timm's weights from the hub.
        checkpoint_path: Weight file in timm's format.
        in_channels: Channels of the input.
        out_type: 'pooled' (the model's own pooling), 'cls_token', 'avg_featmap', 'featmap' or 'raw'.
        init_cfg: As of any MMEngine module.
        **kwargs: Further arguments of ``timm.create_model``; the model has no head.

    Raises:
        ValueError: timm is not installed, or does not know the model, or the model cannot be adapted.
    """
    timm = _library('timm', 'mmpetl.TIMM')
    if not timm.is_model(model_name):
        raise ValueError(f'timm has no model {model_name!r}' + nearest(model_name, timm.list_models()))
    model = timm.create_model(
        model_name,
        pretrained=pretrained,
        checkpoint_path=checkpoint_path,
        in_chans=in_channels,
        # The head of an OpenMMLab model stands outside the backbone.
        num_classes=0,
        **kwargs)
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
        config: Instead of a name: 'model_type' and the arguments of that config.
        out_type: 'pooled' (pooled output, else class token, else mean), 'cls_token', 'avg_featmap', 'featmap' or 'raw'.
        init_cfg: As of any MMEngine module.
        **kwargs: Further arguments of ``from_pretrained`` (of ``AutoConfig.from_pretrained`` without weights).

    Raises:
        ValueError: transformers is not installed, or the kind of model cannot be adapted.
    """
    transformers = _library('transformers', 'mmpetl.HF')
    # Both or neither: one of them would be ignored without a word.
    if bool(model_name) == bool(config):
        raise ValueError("mmpetl.HF needs either model_name='...' or config=dict(model_type='...', ...)")
    if config:
        settings = dict(config)
        kind = settings.pop('model_type', None)
        built = transformers.AutoConfig.for_model(_known(kind), **settings)
    else:
        built = transformers.AutoConfig.from_pretrained(model_name, **({} if pretrained else kwargs))
    # From our table, not from the config's own 'architectures', which may name anything.
    name = TOWERS[_known(built.model_type)]
    cls = getattr(transformers, name)
    # CLIP's config describes two towers.
    built = getattr(built, 'vision_config', built)
    # A pooler that the checkpoint does not hold would be drawn at random.
    plain = dict(add_pooling_layer=False) if 'add_pooling_layer' in inspect.signature(cls.__init__).parameters else {}
    if model_name and pretrained:
        model = cls.from_pretrained(model_name, **plain, **kwargs)
    else:
        model = cls(built, **plain)
    return _formed(model, out_type, init_cfg, model_name or name)


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
