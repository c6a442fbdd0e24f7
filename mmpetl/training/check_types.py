# SPDX-License-Identifier: Apache-2.0
"""Types of a config that no registry knows, and arguments that they do not take, before anything is built."""

import difflib
import importlib
import importlib.util
import inspect
import typing
from dataclasses import dataclass
from functools import lru_cache
from types import UnionType
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Mapping, Optional, Set, Tuple, Union

import torch
from mmengine import registry as root
from mmengine.registry import Registry

from ..registry import METHODS
from ..sites.options import annotations_of, is_a, kind_words
from ..suggest import nearest


@dataclass(frozen=True)
class Typed:
    """A dict of a config that names what is built of it.

    Attributes:
        where: Its path, ``default_hooks.checkpoint``.
        node: The dict.
        registry: Where its type is looked up.
        kind: What people call it.
        default: The type where it names none.
        more: Arguments that somebody else takes out of it.
    """
    where: str
    node: Mapping[str, Any]
    registry: Registry
    kind: str
    default: str = ''
    more: Tuple[str, ...] = ()


LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_LOADER = frozenset({*inspect.signature(torch.utils.data.DataLoader.__init__).parameters, 'num_batch_per_epoch'})
_LOOPS = dict(train_cfg='train', val_cfg='val', test_cfg='test')
# MMEngine hands on to either of the two, by the entry type.
_CLIP = frozenset(('type', *inspect.signature(torch.nn.utils.clip_grad_norm_).parameters,
                   *inspect.signature(torch.nn.utils.clip_grad_value_).parameters)) - {'parameters'}
_PARAMWISE = frozenset(('custom_keys', 'lr_mult', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult',
                        'flat_decay_mult', 'dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate'))
_MULTIPLIERS = ('lr_mult', 'decay_mult')
_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint', 'visualization')
#: Kinds whose constructors are annotated with care, and arguments of schedules that are times.
ANNOTATED = ('schedule', 'hook')
_TIMES = ('begin', 'end', 'T_max', 'step_size', 'total_steps')
#: Backbones that mmaction2's recognizers make without a registry.
FOREIGN = ('torchvision.', 'timm.')
_RANDOMNESS = ('seed', 'diff_rank_seed', 'deterministic')


def check_types(cfg: Mapping[str, Any], source: str) -> None:
    """Look up every type of a config, and compare what it is given with its signature.

    Args:
        cfg: The config of a run.
        source: Its file, for messages.

    Raises:
        ValueError: The first type that nobody knows, or argument that nobody takes, with the nearest that is known.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    if scope not in ('mmengine', *root.MODELS.children) and importlib.util.find_spec(scope.split('.')[0]) is None:
        known = ('mmpretrain', 'mmaction')
        raise ValueError(f'{source}: default_scope={scope!r}: there is no such library{nearest(scope, known)}')
    # registries of a library hang below MMEngine's as soon as they are imported
    if scope != 'mmengine' and importlib.util.find_spec(f'{scope}.registry'):
        importlib.import_module(f'{scope}.registry')
    for each in typed(cfg):
        _check(each, scope, source)
    _check_names(cfg, scope, source)


def typed(cfg: Mapping[str, Any]) -> Iterator[Typed]:
    """The dicts of a config that name what is built of them, in the order in which runs build them."""
    yield from _of_model(cfg)
    for name in LOADERS:
        loader = cfg.get(name)
        if isinstance(loader, Mapping):
            yield from _of_dataset(loader.get('dataset'), f'{name}.dataset')
            yield from _one(loader.get('sampler'), f'{name}.sampler', root.DATA_SAMPLERS, 'sampler')
            yield from _one(loader.get('batch_sampler'), f'{name}.batch_sampler', root.DATA_SAMPLERS, 'sampler')
            yield from _one(loader.get('collate_fn'), f'{name}.collate_fn', root.FUNCTIONS, 'collate function')
    wrapper = cfg.get('optim_wrapper')
    if isinstance(wrapper, Mapping):
        yield from _one(wrapper.get('optimizer'), 'optim_wrapper.optimizer', root.OPTIMIZERS, 'optimizer')
        if 'optimizer' in wrapper:
            yield Typed('optim_wrapper', wrapper, root.OPTIM_WRAPPERS, 'optimizer wrapper', 'OptimWrapper',
                        ('constructor', 'paramwise_cfg', 'loss_scale', 'dtype', 'use_fsdp'))
    yield from _several(cfg.get('param_scheduler'), 'param_scheduler', root.PARAM_SCHEDULERS, 'schedule',
                        more=('convert_to_iter_based', ))
    for key, word in _LOOPS.items():
        yield from _one(cfg.get(key), key, root.LOOPS, f'{word} loop', _loop_of(cfg.get(key), word),
                        ('by_epoch', 'fp16', 'phases'))
    for name, hook in (cfg.get('default_hooks') or {}).items():
        yield from _one(hook, f'default_hooks.{name}', root.HOOKS, 'hook', more=('priority', ))
    yield from _several(cfg.get('custom_hooks'), 'custom_hooks', root.HOOKS, 'hook', more=('priority', ))
    for name in ('val_evaluator', 'test_evaluator'):
        found = cfg.get(name)
        if isinstance(found, Mapping) and 'type' not in found and 'metrics' in found:
            yield from _several(found['metrics'], f'{name}.metrics', root.METRICS, 'metric')
        elif not (isinstance(found, Mapping) and str(found.get('type')).endswith('Evaluator')):
            yield from _several(found, name, root.METRICS, 'metric')
    shown = cfg.get('visualizer')
    yield from _one(shown, 'visualizer', root.VISUALIZERS, 'visualizer')
    if isinstance(shown, Mapping):
        yield from _several(shown.get('vis_backends'), 'visualizer.vis_backends', root.VISBACKENDS,
                            'visualization backend')
    yield from _several(cfg.get('vis_backends'), 'vis_backends', root.VISBACKENDS, 'visualization backend')
    yield from _one(cfg.get('log_processor'), 'log_processor', root.LOG_PROCESSORS, 'log processor', 'LogProcessor')


def _one(node: Any, where: str, registry: Registry, kind: str, default: str = '', more: Tuple[str, ...] = ()) \
        -> Iterator[Typed]:
    if isinstance(node, Mapping):
        yield Typed(where, node, registry, kind, default, more)


def _several(node: Any, where: str, *args: Any, **kwargs: Any) -> Iterator[Typed]:
    if isinstance(node, (list, tuple)):
        for number, part in enumerate(node):
            yield from _one(part, f'{where}.{number}', *args, **kwargs)
    elif isinstance(node, Mapping) and ('type' in node or where != 'param_scheduler'):
        yield from _one(node, where, *args, **kwargs)


def _loop_of(node: Any, word: str) -> str:
    if word != 'train':
        return f'{word.title()}Loop'
    by_epoch = isinstance(node, Mapping) and node.get('by_epoch', 'max_iters' not in node)
    return 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'


def _of_model(cfg: Mapping[str, Any]) -> Iterator[Typed]:
    model = cfg.get('model')
    if not isinstance(model, Mapping):
        return
    for path in ('backbone', 'neck', 'head', 'cls_head', 'data_preprocessor'):
        node = model.get(path)
        kind = node.get('type', '') if isinstance(node, Mapping) else ''
        foreign = path == 'backbone' and str(kind).startswith(FOREIGN)
        if not foreign and (kind or path != 'data_preprocessor'):  # without a type its model's class decides
            yield from _several(node, f'model.{path}', root.MODELS, path.split('_')[-1])
        loss = 'loss_cls' if path == 'cls_head' else 'loss'
        if isinstance(node, Mapping) and 'head' in path:
            yield from _one(node.get(loss), f'model.{path}.{loss}', root.MODELS, 'loss')
    if isinstance(model.get('backbone'), Mapping):
        yield from _one(model['backbone'].get('init_cfg'), 'model.backbone.init_cfg', root.WEIGHT_INITIALIZERS,
                        'initialiser')
        yield from _several(model['backbone'].get('petl'), 'model.backbone.petl', METHODS, 'method', more=('name', ))
    if cfg.get('default_scope') == 'mmpretrain' and isinstance(model.get('train_cfg'), Mapping):
        augments = importlib.import_module('mmpretrain.registry').BATCH_AUGMENTS
        yield from _several(model['train_cfg'].get('augments'), 'model.train_cfg.augments', augments, 'augmentation')
    node = cfg.get('data_preprocessor')
    if isinstance(node, Mapping) and ('type' in node or cfg.get('default_scope') == 'mmpretrain'):
        yield Typed('data_preprocessor', node, root.MODELS, 'preprocessor', 'ClsDataPreprocessor')
    yield from _one(model, 'model', root.MODELS, 'model')
    inner = model.get('module')
    if isinstance(inner, Mapping):
        yield from _of_model(dict(model=inner))


def _of_dataset(node: Any, where: str) -> Iterator[Typed]:
    if not isinstance(node, Mapping):
        return
    yield from _several(node.get('pipeline'), f'{where}.pipeline', root.TRANSFORMS, 'transform')
    yield from _one(node, where, root.DATASETS, 'data set')
    yield from _of_dataset(node.get('dataset'), f'{where}.dataset')
    for number, part in enumerate(node.get('datasets') or ()):
        yield from _of_dataset(part, f'{where}.datasets.{number}')


# -- one of them ------------------------------------------------------------------------------------------------------


def _check(each: Typed, scope: str, source: str) -> None:
    kind = each.node.get('type', each.default or None)
    if kind is None:
        raise ValueError(f'{source}: {each.where} has no type: name the {each.kind} that is meant')
    build = kind if callable(kind) else look_up(each.registry, kind, scope)
    if build is None:
        hint = near_types(each.registry, str(kind), scope)
        raise ValueError(f"{source}: {each.where}.type={kind!r:.80}: no {each.kind} has this name{hint or '; give one'}"
                         f'{"" if hint else " of a registered class, or import its module by custom_imports"}')
    names, closed = parameters_of(build)
    for key, value in each.node.items():
        if key in ('type', '_scope_', *each.more) or key in names:
            continue
        near = difflib.get_close_matches(str(key), [*names, *each.more], 1, 0.8)
        if closed or near:
            name = getattr(build, '__name__', str(build))
            hint = nearest(str(key), sorted({*names, *each.more} - {'self', 'specs'}))
            raise ValueError(f'{source}: {each.where}.{key}={value!r:.60}: {name} takes no argument {key!r}{hint}')
    if inspect.isclass(build):
        ours = each.kind in ANNOTATED and build.__module__.split('.')[0] in ('mmengine', 'mmpetl')
        _check_kinds(each, build, source, {int, float, bool} if ours else {bool})


def _check_kinds(each: Typed, build: type, source: str, known: Set[type]) -> None:
    """Numbers and switches are what their annotations say; times in epochs that become iterations may be fractions. Of
    other packages' classes only a text in place of a switch is a fault: 'no' would mean True."""
    loose = _TIMES if each.node.get('convert_to_iter_based') else ()
    for step in build.__mro__:
        if '__init__' not in step.__dict__ or step is object:
            continue
        for key, kind in annotations_of(vars(step)['__init__']).items():
            value = each.node.get(key)
            kinds = set(typing.get_args(kind) if typing.get_origin(kind) in (Union, UnionType) else (kind, ))
            if value is None or key in loose or not kinds <= {*known, type(None)} or (
                    known == {bool} and not isinstance(value, str)):
                continue
            if not is_a(value, kind):
                words = kind_words(kind).removesuffix(' or None')
                raise ValueError(f'{source}: {each.where}.{key}={value!r:.60}: give {words}')


def look_up(registry: Registry, name: Any, scope: str) -> Optional[Callable[..., Any]]:
    """What a registry builds under a name, in a scope; None if nobody knows it."""
    if not isinstance(name, str):
        return None
    if registry is METHODS:
        return registry.get(name)
    if registry is root.FUNCTIONS and scope in root.DATASETS.children:
        root.DATASETS.children[scope].import_from_location()  # mmaction2 names no place of its collate functions
    for each in (registry.children.get(scope, registry), registry):
        try:
            found = each.get(name)
        except (ImportError, ValueError, KeyError):  # of a place that mmaction2 names and does not have
            continue
        if found is not None:
            return found
    return None


def near_types(registry: Registry, name: str, scope: str) -> str:
    """A hint with the nearest names in a scope, or in that before the dot; '' if there is none."""
    own, _, last = name.rpartition('.')
    parents: List[Registry] = [registry.children.get(own or scope, registry)]
    while parents[-1].parent is not None:
        parents.append(parents[-1].parent)
    found = difflib.get_close_matches(last, sorted({n for r in parents for n in r.module_dict}), 3, 0.5)
    prefix = f'{own}.' if own in registry.children else ''
    return '; did you mean ' + ' or '.join(repr(prefix + one) for one in found) + '?' if found else ''


@lru_cache(maxsize=None)
def parameters_of(build: Callable[..., Any]) -> Tuple[FrozenSet[str], bool]:
    """Names of the arguments that a class or function takes, and whether it takes no others for sure."""
    names: Dict[str, None] = {}
    steps = [c.__dict__['__init__'] for c in build.__mro__ if '__init__' in c.__dict__ and c is not object] \
        if inspect.isclass(build) else [build]
    closed = False
    for number, step in enumerate(steps):
        try:
            found = inspect.signature(step).parameters.values()
        except (TypeError, ValueError):
            return frozenset(names), False
        names.update({p.name: None for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)})
        if not any(p.kind is p.VAR_KEYWORD for p in found):
            closed = number == 0  # what hands its arguments on may also take some out
            break
    return frozenset(names) - {'self'}, closed


# -- sections without a type ------------------------------------------------------------------------------------------


def _check_names(cfg: Mapping[str, Any], scope: str, source: str) -> None:
    for name in LOADERS:
        _compare(cfg.get(name), name, sorted(_LOADER - {'self'}), source)
    wrapper = cfg.get('optim_wrapper')
    if isinstance(wrapper, Mapping):
        _compare(wrapper.get('clip_grad'), 'optim_wrapper.clip_grad', sorted(_CLIP), source)
        constructor = wrapper.get('constructor', 'DefaultOptimWrapperConstructor')
        if look_up(root.OPTIM_WRAPPER_CONSTRUCTORS, constructor, scope) is None and not callable(constructor):
            hint = near_types(root.OPTIM_WRAPPER_CONSTRUCTORS, str(constructor), scope)
            raise ValueError(f'{source}: optim_wrapper.constructor={constructor!r:.80}: no constructor has this '
                             f'name{hint or "; mmpetl.TrainableOptimWrapperConstructor suits adapters"}')
        if str(constructor).split('.')[-1] in ('DefaultOptimWrapperConstructor', 'TrainableOptimWrapperConstructor'):
            _compare(wrapper.get('paramwise_cfg'), 'optim_wrapper.paramwise_cfg', sorted(_PARAMWISE), source)
            keys = (wrapper.get('paramwise_cfg') or {}).get('custom_keys')
            for key, options in keys.items() if isinstance(keys, Mapping) else ():
                where = f'optim_wrapper.paramwise_cfg.custom_keys.{key}'
                if not isinstance(options, Mapping):
                    raise ValueError(f'{source}: {where}={options!r:.60}: give a dict such as dict(lr_mult=0.1)')
                _compare(options, where, _MULTIPLIERS, source)
    _compare(cfg.get('randomness'), 'randomness', _RANDOMNESS, source)
    runner = cfg.get('runner_type')
    if runner is not None and not callable(runner) and look_up(root.RUNNERS, runner, scope) is None:
        hint = near_types(root.RUNNERS, str(runner), scope)
        raise ValueError(f"{source}: runner_type={runner!r:.80}: no runner has this name{hint or '; leave it out'}")
    for name in cfg.get('default_hooks') or {}:
        if name not in _HOOKS and difflib.get_close_matches(name, _HOOKS, 1, 0.8):
            raise ValueError(f'{source}: default_hooks.{name}: no hook has this place{nearest(name, _HOOKS)}')


def _compare(node: Any, where: str, known: Any, source: str) -> None:
    for key in node if isinstance(node, Mapping) else ():
        if key not in known:
            raise ValueError(f'{source}: {where}.{key}={node[key]!r:.60}: nobody reads this key{nearest(key, known)}')
