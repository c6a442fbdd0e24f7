# SPDX-License-Identifier: Apache-2.0
"""A model from a config and a file: what merge, plan and export share."""

import copy
import io
import json
import os
from typing import Any, Dict, Mapping, Optional

import torch
from mmengine.config import Config
from torch import Tensor, nn

from .. import registry  # noqa: F401
from ..adapters.facts import check_adapter, config_facts, forced
from ..adapters.files import header_of, load_adapter
from ..adapters.peft_folder import read_folder
from ..tuning import find_backbone, head_keys
from ..weights.adapter_file import is_adapter
from ..weights.errors import WeightFileError
from ..weights.hub import is_hub, is_peft, local_path
from ..weights.io import atomic_write, load_file
from .check import check_config
from .config import load_config
from .flags import FORCE  # noqa: F401  (of merge and export)
from .naming import naming_keys, source_of
from .options import merge_options
from .tasks import apply_task

#: Suffixes that :func:`write_state` writes.
SUFFIXES = ('.pth', '.safetensors')


def read_config(path: str, options: Optional[Mapping[str, Any]] = None) -> Config:
    """A config with ``--cfg-options`` and its task applied.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the config has no model, or its task does not fit.
    """
    cfg = load_config(path)
    merge_options(cfg, options)
    apply_task(cfg, options)
    # the rest of a config may be incomplete: only the model is built of it
    parts = {key: cfg[key] for key in ('model', 'data_preprocessor') if key in cfg}
    check_config(dict(parts, default_scope=scope_of(cfg)), path)
    return cfg


def scope_of(cfg: Config) -> str:
    """Whose registries are asked first: what upstream's files of a bare model leave out is mmpretrain's."""
    return cfg.get('default_scope') or 'mmpretrain'


def build_model(cfg: Config, weights: bool = True) -> nn.Module:
    """The model of a config.

    Args:
        cfg: A config.
        weights: False leaves out what opens files: ``init_cfg`` and text features (a head made of those has no
            parameters); and what blends batches.

    Raises:
        ValueError: If the model has no attached backbone.
    """
    from mmengine.registry import init_default_scope

    init_default_scope(scope_of(cfg))
    with naming_keys(cfg, source_of(cfg)):
        return _build(cfg, weights)


def _build(cfg: Config, weights: bool) -> nn.Module:
    from mmengine.registry import MODELS
    settings = copy.deepcopy(cfg.model)
    if settings.get('data_preprocessor') is None and cfg.get('data_preprocessor'):
        settings['data_preprocessor'] = cfg.data_preprocessor
    if not weights:
        _leave_out_files(settings)
    model: nn.Module = MODELS.build(settings)
    find_backbone(model)
    return model


def _leave_out_files(settings: Any) -> None:
    """Take out of a model config what reads files, or draws numbers, while the model is built."""
    if isinstance(settings.get('data_preprocessor'), dict):
        settings['data_preprocessor'].pop('blending', None)  # a distribution that a meta device cannot check
    if isinstance(settings.get('backbone'), dict):
        settings['backbone'].pop('init_cfg', None)
        if 'model_name' in settings['backbone']:  # of timm or transformers, whose weights come by name
            settings['backbone'].update(pretrained=False)
            settings['backbone'].pop('checkpoint_path', None)
    head = settings.get('head')
    if isinstance(head, dict) and head.pop('text_features', None) is not None and str(
            head.get('type')).endswith('ZeroShotHead'):
        settings['head'] = None
    if isinstance(settings.get('cls_head'), dict) and settings['cls_head'].get('text_features') is not None:
        settings['cls_head']['text_features'] = None


def load_trained(model: nn.Module, path: str, cfg: Optional[Config] = None,
                 force: bool = False) -> Optional[Dict[str, Any]]:
    """Load an adapter file, or a checkpoint of a training run, into a model; its base comes from ``init_cfg`` where the
    file lacks it.

    Args:
        model: The model of a config.
        path: Adapter file, checkpoint, folder of peft, or ``hf://user/repo`` for an adapter or such a folder on the
            hub.
        cfg: That config, whose classes and preprocessing are compared with the adapter's.
        force: See :func:`mmpetl.load_adapter`.

    Returns:
        The header of an adapter file or of a checkpoint, None where a checkpoint has none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If something is missing, or does not fit.
    """
    named, path = path, local_path(path)
    if is_peft(path):
        return _load_peft(model, named, path)
    if is_adapter(path):
        return load_adapter(model, named, force, **(config_facts(cfg) if cfg is not None else {}))
    if is_hub(named):
        raise WeightFileError(named, 'a safetensors file without adapter header',
                              'only adapters are taken from the hub; name a base in init_cfg')
    loaded = load_file(path)
    state, header = loaded['state_dict'], header_of(loaded)
    if header is not None:
        check_adapter(model, header, path, force, **(config_facts(cfg) if cfg is not None else {}))
    own = model.state_dict()
    odd = [k for k in state if k in own and own[k].shape != state[k].shape]
    unknown = [k for k in state if k not in own]
    if odd or unknown:
        what = f'{unknown[0]} is unknown' if not odd else (
            f'{odd[0]} has shape {tuple(state[odd[0]].shape)} and not {tuple(own[odd[0]].shape)}')
        raise WeightFileError(path, f'does not fit the model of the config: {what}',
                              'use the config with which it was trained')
    try:
        with forced(model, force):
            model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightFileError(path, str(error), 'use the config with which it was trained') from None
    return header


def _load_peft(model: nn.Module, named: str, path: str) -> Dict[str, Any]:
    """Base and folder of peft into the model of a config that has no methods.

    Raises:
        ValueError: If the folder has no head for the model's.
    """
    backbone, _ = find_backbone(model)
    if len(backbone.petl):
        raise ValueError(f'{named}: a folder of peft brings its own methods, and the config attaches '
                         f'{", ".join(backbone.petl)}: take them out by --cfg-options model.backbone.petl=[]')
    config, _ = read_folder(path)
    if head_keys(model) and not config.get('modules_to_save'):
        raise ValueError(f'{named}: this folder of peft holds no head, and that of the model would stay random: use '
                         'it from Python, mmpetl.load_adapter')
    model.init_weights()
    return load_adapter(model, named)


def check_output(path: str, inputs: Any = (), suffixes: Any = SUFFIXES) -> None:
    """Refuse a name of an output before anything is computed.

    Raises:
        WeightFileError: If the suffix is unknown or the output is one of the inputs.
    """
    if not path.endswith(tuple(suffixes)):
        raise WeightFileError(path, 'unknown output format',
                              f'name it {" or ".join("*" + suffix for suffix in suffixes)}')
    for source in inputs:
        if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
            raise WeightFileError(path, 'is an input itself', 'name another output')


def write_state(path: str, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a state dict as ``.pth`` (``{'state_dict', 'meta'}``) or ``.safetensors`` (``meta`` as JSON), atomically.

    Raises:
        WeightFileError: If the path has another suffix.
    """
    check_output(path)
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    if path.endswith('.safetensors'):
        from safetensors.torch import save
        # clones: the safetensors library refuses tensors that share memory
        data = save({key: tensor.clone() for key, tensor in plain.items()}, {'format': 'pt', 'meta': json.dumps(meta)})
    else:
        buffer = io.BytesIO()
        torch.save({'state_dict': plain, 'meta': dict(meta)}, buffer)
        data = buffer.getvalue()

    def write(file: Any) -> None:
        file.write(data)

    atomic_write(path, write)
