# SPDX-License-Identifier: Apache-2.0
"""What every run gets, whatever its config says: whole checkpoints, exact resuming, guards, a schedule that fits.

:func:`prepare` rewrites a config for MMEngine's runner. Types that the config names are replaced only by those of this
package that take the same arguments.
"""

import logging
import os
from typing import Any, Dict, List, Optional

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from ..hooks.checkpoint import STATE
from ..weights.io import load_file
from .work_dir import Newest, newest_checkpoint

#: Hooks that every training run has.
HOOKS = ('mmpetl.RunGuardHook', 'mmpetl.ScheduleHook')
#: Hooks without which a method would not be trained as published.
HOOKS_OF = dict(AdaLoRA='mmpetl.AdaLoRAHook', GPS='mmpetl.ChoiceHook', SCT='mmpetl.ChoiceHook',
                SPT='mmpetl.ChoiceHook')


def _is(node: Any, name: str) -> bool:
    """Whether a config's ``type`` is MMEngine's ``name``."""
    kind = node.get('type') if isinstance(node, dict) else None
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', '')).split('.')[-1] == name and not str(
        kind).startswith('mmpetl.')


def prepare(cfg: Config) -> Optional[Newest]:
    """Complete the config of a run in place.

    Returns:
        From where a run with ``resume=True`` goes on; None for others.

    Raises:
        ValueError: If the schedule or the optimizer cannot do what they say.
    """
    if not cfg.get('train_cfg') or not cfg.get('train_dataloader'):
        return None
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    if 'checkpoint' not in hooks:
        hooks['checkpoint'] = ConfigDict(type='CheckpointHook', interval=1)
    if _is(hooks.get('checkpoint'), 'CheckpointHook'):
        hooks['checkpoint']['type'] = 'mmpetl.CheckpointHook'
    custom = list(cfg.get('custom_hooks') or [])
    for hook in custom:
        if _is(hook, 'EarlyStoppingHook'):
            hook['type'] = 'mmpetl.EarlyStoppingHook'
    have = {str(hook.get('type')).split('.')[-1] for hook in custom if isinstance(hook, dict)}
    wanted = [*HOOKS, *_hooks_of_methods(cfg)]
    cfg.custom_hooks = [*custom, *[dict(type=name) for name in wanted if name.split('.')[-1] not in have]]
    _set_loop(cfg)
    _fit_schedule(cfg)
    _check_decay(cfg)
    if not cfg.get('resume') or cfg.get('load_from'):
        return None
    where = (hooks.get('checkpoint') or {}).get('out_dir')
    more = (os.path.join(where, os.path.basename(cfg.work_dir.rstrip(os.sep))), ) if where else ()
    found = newest_checkpoint(cfg.work_dir, more)
    if found.path is None and found.damaged:
        raise ValueError(f'--resume: {cfg.work_dir} holds no whole checkpoint: {"; ".join(found.damaged)}; begin anew '
                         'by --overwrite')
    cfg.load_from = found.path
    return found


def _hooks_of_methods(cfg: Config) -> List[str]:
    """Hooks that the methods of a config need."""
    methods = ((cfg.get('model') or {}).get('backbone') or {}).get('petl') or ()
    listed = methods if isinstance(methods, (list, tuple)) else ()  # the backbone says what is wrong with another value
    kinds = [str(m.get('type')).split('.')[-1] for m in listed if isinstance(m, dict)]
    return list(dict.fromkeys(HOOKS_OF[kind] for kind in kinds if kind in HOOKS_OF))


def _check_decay(cfg: Config) -> None:
    """Refuse layer-wise decay of what has no layer.

    Raises:
        ValueError: If a constructor scales rates by the names of blocks, which adapters do not have.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    kind = wrapper.get('constructor') if isinstance(wrapper, dict) else None
    kind = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    methods = (cfg.model.get('backbone') or {}).get('petl') if isinstance(cfg.get('model'), dict) else None
    if methods and any(word in kind for word in ('LearningRateDecay', 'LayerDecay')):
        names = ', '.join(str(method.get('type')) for method in methods)
        raise ValueError(f'optim_wrapper.constructor={kind!r} scales rates by the names of blocks, which {names} do '
                         'not have: set it to mmpetl.TrainableOptimWrapperConstructor and leave out its paramwise_cfg')


def name_base(cfg: Config) -> None:
    """A plain weight file in ``load_from`` is the base: let ``model.backbone.init_cfg`` name it.

    An adapter that is trained on it is then found to belong to it, in this run and wherever the config is used.
    """
    path, backbone = cfg.get('load_from'), (cfg.get('model') or {}).get('backbone')
    if not isinstance(path, str) or '://' in path or not isinstance(backbone, dict) or 'petl' not in backbone:
        return
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        return
    loaded = load_file(path)
    trained = any('petl.' in key for key in loaded['state_dict'])
    if trained or STATE in loaded or 'methods' in (loaded.get('meta') or {}):
        return
    if not (isinstance(backbone.get('init_cfg'), dict) and backbone['init_cfg'].get('checkpoint') == path):
        print_log(f'load_from={path} holds a base: taken as model.backbone.init_cfg', 'current')
        backbone['init_cfg'] = ConfigDict(type='Pretrained', checkpoint=path)
    if not any(key.startswith('backbone.') for key in loaded['state_dict']):
        cfg.load_from = None  # a base by itself has nothing for the rest of the model


def _set_loop(cfg: Config) -> None:
    loop = cfg.train_cfg
    if 'type' in loop and 'by_epoch' in loop:
        raise ValueError(f"train_cfg has type={loop['type']!r} and by_epoch={loop['by_epoch']!r}, of which only one "
                         "may be there: where a config that it inherits says by_epoch, write train_cfg = "
                         f"dict(_delete_=True, type={loop['type']!r}, ...)")
    if 'type' not in loop and 'by_epoch' in loop:
        loop['type'] = 'EpochBasedTrainLoop' if loop.pop('by_epoch') else 'IterBasedTrainLoop'
    for theirs, ours in (('EpochBasedTrainLoop', 'EpochTrainLoop'), ('IterBasedTrainLoop', 'IterTrainLoop')):
        if _is(loop, theirs):
            loop['type'] = f'mmpetl.{ours}'
    if loop.get('type') == 'mmpetl.IterTrainLoop':
        _count_iterations(cfg)


def _count_iterations(cfg: Config) -> None:
    """Let the log of a run by iterations count these: MMEngine's default counts epochs of one iteration."""
    hooks, processor = cfg.default_hooks, cfg.get('log_processor')
    logger = hooks.setdefault('logger', ConfigDict(type='LoggerHook'))
    if isinstance(logger, dict):
        logger['log_metric_by_epoch'] = False
    if processor is None or isinstance(processor, dict):
        cfg.log_processor = ConfigDict({'type': 'LogProcessor', **(processor or {}), 'by_epoch': False})


# -- schedules --------------------------------------------------------------------------------------------------------


def _fit_schedule(cfg: Config) -> None:
    """See that a schedule spans the run that it belongs to.

    Raises:
        ValueError: If a cosine or polynomial ends before the run does and nothing follows it: its last rate, often 0,
            would stay for the rest.
    """
    entries, loop = cfg.get('param_scheduler'), cfg.train_cfg
    if not entries or not isinstance(entries, (list, tuple, dict)) or (isinstance(entries, dict)
                                                                       and 'type' not in entries):
        return
    listed = [entries] if isinstance(entries, dict) else list(entries)
    kept: List[Dict[str, Any]] = []
    for number, entry in enumerate(listed):
        if not isinstance(entry, dict):
            return
        last = loop.get('max_epochs') if entry.get('by_epoch', True) else loop.get('max_iters')
        if last is not None and entry.get('begin', 0) >= last > 0:  # of a run that was made shorter than its schedule
            _say_too_late(entry, number, last)
            continue
        if _is(entry, 'LinearLR') and entry.get('convert_to_iter_based'):
            entry['type'] = 'mmpetl.LinearLR'
        kept.append(entry)
        _check_end(entry, number, listed, last)
    cfg.param_scheduler = kept or None


def _say_too_late(entry: Dict[str, Any], number: int, last: int) -> None:
    unit = 'epochs' if entry.get('by_epoch', True) else 'iters'
    kind = str(entry.get('type')).split('.')[-1]
    print_log(f'param_scheduler.{number} ({kind}) begins at {entry["begin"]} and train_cfg.max_{unit} is {last}: it is '
              'left out, so the rate ends where those before leave it. Set begin and end of all to the length of this '
              'run', 'current', logging.WARNING)


def _check_end(entry: Dict[str, Any], number: int, listed: List[Dict[str, Any]], last: Any) -> None:
    """See that a schedule which brings the rate down ends with the training, which has ``last`` epochs or steps.

    Raises:
        ValueError: If it ends before, and no other schedule begins there.
    """
    kind = str(entry.get('type')).split('.')[-1]
    if last is None or kind not in ('CosineAnnealingLR', 'PolyLR', 'OneCycleLR'):
        return
    period = entry.get('T_max', entry.get('total_steps'))
    end = entry.get('end') if entry.get('end') is not None else period and entry.get('begin', 0) + period
    if not isinstance(end, (int, float)) or end == last:
        return
    unit = 'epochs' if entry.get('by_epoch', True) else 'iters'
    where = f'param_scheduler.{number} ({kind})'
    if end > last:
        print_log(f'{where} goes on to {end} and train_cfg.max_{unit} is {last}: its rate does not come down in this '
                  'run. Leave out its end and T_max, so that they follow', 'current', logging.WARNING)
        return
    if any(isinstance(other, dict) and other.get('begin', 0) >= end for other in listed):
        return
    raise ValueError(f'{where} ends at {end} and train_cfg.max_{unit} is {last}: its last '
                     f'rate would stay for the rest. Leave out its end and T_max, so that they follow, or set both; '
                     f"dict(type='ConstantLR', factor=1, begin={end}) after it says that it shall stay")
