# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a config, before anything is built: one line with the file, the key, the value, and how to mend
it. Sections are looked at here, types and their arguments in :mod:`mmpetl.training.check_types`."""

import difflib
import math
from typing import Any, Dict, Iterator, List, Mapping, Tuple, TypeGuard

from .check_types import check_types

#: Top-level keys that runs read. Other names are variables of the config.
KEYS = ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_cfg', 'test_cfg',
        'val_evaluator', 'test_evaluator', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'default_hooks',
        'custom_hooks', 'data_preprocessor', 'load_from', 'resume', 'launcher', 'env_cfg', 'log_processor', 'log_level',
        'visualizer', 'vis_backends', 'default_scope', 'randomness', 'experiment_name', 'custom_imports', 'work_dir')
#: Those that only this package, one kind of run or one command reads.
OWN_KEYS = ('task', 'per_task', 'sweep', 'force_adapter', 'petl_checkpointing', 'activation_checkpointing', 'compile',
            'cuda_graph', 'check_masks', 'runner_type', 'strategy', 'tta_model', 'tta_pipeline', 'model_wrapper_cfg',
            'find_unused_parameters')
#: Keys of older MMCV configs -> what took their place.
OLD_KEYS = {'optimizer': 'optim_wrapper.optimizer', 'optimizer_config': 'optim_wrapper', 'lr_config': 'param_scheduler',
            'runner': 'train_cfg', 'workflow': 'train_cfg and val_cfg', 'evaluation': 'val_cfg and val_evaluator',
            'checkpoint_config': 'default_hooks.checkpoint', 'log_config': 'default_hooks.logger',
            'resume_from': 'resume and load_from', 'petl': 'model.backbone.petl', 'tune': 'model.backbone.tune',
            'hooks': 'custom_hooks', 'samples_per_gpu': 'train_dataloader.batch_size'}
#: Sections that are dicts; of those in LISTS a list of dicts will do.
SECTIONS = ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_cfg', 'test_cfg',
            'val_evaluator', 'test_evaluator', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'default_hooks',
            'custom_hooks', 'data_preprocessor', 'env_cfg', 'log_processor', 'visualizer', 'vis_backends', 'randomness')
LISTS = ('val_evaluator', 'test_evaluator', 'param_scheduler', 'custom_hooks', 'vis_backends', 'log_processor')
TEXTS = ('load_from', 'launcher', 'default_scope', 'experiment_name', 'work_dir')
#: Sections that come together, with what each needs.
TOGETHER = (('train_dataloader', 'train_cfg', 'optim_wrapper'), ('val_dataloader', 'val_cfg', 'val_evaluator'),
            ('test_dataloader', 'test_cfg', 'test_evaluator'))
#: Optimizers that no loop of MMEngine can use, and why.
UNFIT = {'LBFGS': 'steps by a closure, which loops do not give', 'SparseAdam': 'takes sparse gradients only',
         'Optimizer': 'is no optimizer but what all of them inherit'}
#: Whole numbers from 1, or tuples of them.
POSITIVE = ('batch_size', 'max_epochs', 'max_iters', 'val_interval', 'num_classes', 'in_channels', 'embed_dims',
            'num_layers', 'num_heads', 'patch_size', 'crop_size', 'clip_len', 'frame_interval', 'num_clips',
            'num_crops', 'accumulative_counts', 'num_repeats', 'img_size', 'interval', 'window_size', 'base_batch_size',
            'num_frames', 'feedforward_channels', 'step_size', 'total_steps')
#: Keys of POSITIVE of which -1 says: never.
MINUS_ONE = ('interval', )
#: Whole numbers from 0.
COUNTS = ('num_workers', 'val_begin')
#: Rates from 0 to below 1.
RATES = ('drop_rate', 'drop_path_rate', 'dropout_ratio', 'attn_drop_rate')
SWITCHES = ('resume', 'by_epoch', 'drop_last', 'persistent_workers', 'pin_memory', 'deterministic', 'diff_rank_seed',
            'shuffle', 'convert_to_iter_based', 'cudnn_benchmark')
#: No number of a config is larger: float32 ends at 3.4e38.
LARGEST = 1e30
LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL', 'WARN', 'FATAL', 'NOTSET')


def check_config(cfg: Mapping[str, Any], source: str) -> None:
    """Refuse what could only fail later, or would train nothing and say nothing.

    Args:
        cfg: The config of a run, options merged.
        source: Its file, for messages.

    Raises:
        ValueError: The first fault.
    """
    plain: Dict[str, Any] = dict(cfg.items())
    for fault in (*_sections(plain), *_unread(plain), *_values(plain)):
        raise ValueError(f'{source}: {fault}')
    check_types(plain, source)


def check_sections(cfg: Mapping[str, Any], source: str) -> None:
    """Refuse sections that are none, before flags are written into them.

    Raises:
        ValueError: The first fault.
    """
    for fault in _sections(dict(cfg.items())):
        raise ValueError(f'{source}: {fault}')


def check_complete(cfg: Mapping[str, Any], source: str, phase: str = 'train') -> None:
    """See that a config has what training, or testing, needs.

    Raises:
        ValueError: Naming the section that is missing.
    """
    for part in TOGETHER if phase == 'train' else TOGETHER[2:]:
        there = [key for key in part if cfg.get(key) is not None]
        missing = [key for key in part if key not in there]
        needed = part[0].startswith(phase)
        if missing and (there or needed):
            have = f', though it has {" and ".join(there)}' if there else ''
            leave = '' if needed else ', or leave out all three'
            raise ValueError(f'{source}: the config has no {" and no ".join(missing)}{have}: write it{leave}')


def _is_dict(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def is_plain(value: Any) -> bool:
    """Whether a value is neither a section nor an object that a config built itself."""
    return isinstance(value, (str, bool, int, float))


def _sections(cfg: Dict[str, Any]) -> Iterator[str]:
    """What is wrong with the form of the sections: of what type they are, and what cannot be done without."""
    for key in SECTIONS:
        value = cfg.get(key)
        several = value if key in LISTS and isinstance(value, (list, tuple)) else None
        parts = [value] if several is None else list(several)
        # A section may be None, an entry of a list may not.
        odd = [part for part in parts if is_plain(part) or isinstance(part, (list, tuple))
               or several is not None and part is None]
        if odd:
            yield f"{key}={value!r:.80}: give a dict{' or a list of dicts' if key in LISTS else ''}"
    for key in TEXTS:
        if cfg.get(key) is not None and not isinstance(cfg[key], str):
            yield f'{key}={cfg[key]!r:.80}: give a text'
        elif cfg.get(key) == '':
            yield f"{key}='': give a text that is not empty, or None"
    yield from _model(cfg.get('model'))
    for name, hook in (cfg.get('default_hooks') or {}).items():
        if is_plain(hook):
            yield f'default_hooks.{name}={hook!r:.80}: give a dict, or None'
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        yield from _loader(cfg.get(name), name)
    yield from _optimizer(cfg.get('optim_wrapper'))
    yield from _settings(cfg)


def _model(model: Any) -> Iterator[str]:
    if not model:
        yield 'the config has no model: write model=dict(type=...), or a _base_ that has one'
    backbone = model.get('backbone') if _is_dict(model) else None
    if _is_dict(backbone) and is_plain(backbone.get('init_cfg')):
        yield (f"model.backbone.init_cfg={backbone['init_cfg']!r:.80}: give "
               "dict(type='Pretrained', checkpoint='FILE')")


def _optimizer(wrapper: Any) -> Iterator[str]:
    if not _is_dict(wrapper):
        return
    if is_plain(wrapper.get('optimizer')):
        yield f'optim_wrapper.optimizer={wrapper["optimizer"]!r:.80}: give a dict(type=..., lr=...)'
    elif _is_dict(wrapper.get('optimizer')):
        yield from _unfit(wrapper['optimizer'])
    # A constructor may make optimizers of its own, and a wrapper of several holds a dict for each.
    elsewhere = 'constructor' in wrapper or any(_is_dict(part) for part in wrapper.values())
    if 'optimizer' not in wrapper and not elsewhere:
        yield 'optim_wrapper has no optimizer: write optimizer=dict(type=..., lr=...)'


def _unfit(optimizer: Mapping[str, Any]) -> Iterator[str]:
    """Optimizers that torch or transformers have and MMEngine's loops cannot use, as they are configured."""
    kind = optimizer.get('type')
    if kind in UNFIT:
        yield f"optim_wrapper.optimizer.type='{kind}': it {UNFIT[kind]}; give AdamW or SGD"
    if kind == 'Adafactor' and optimizer.get('relative_step', True):
        lr = optimizer.get('lr')
        yield (f'optim_wrapper.optimizer (Adafactor, lr={lr}, relative_step=True, its default): it chooses its rate '
               'itself, which schedules and logs of MMEngine cannot read; give '
               f'lr={lr if _is_number(lr) else "1e-3"}, relative_step=False')


def _settings(cfg: Dict[str, Any]) -> Iterator[str]:
    """What is wrong with settings that are no sections."""
    if cfg.get('launcher') not in (None, 'none', 'pytorch', 'slurm', 'mpi'):
        yield f"launcher={cfg['launcher']!r}: give 'none', 'pytorch', 'slurm' or 'mpi'"
    level = cfg.get('log_level')
    if level is not None and not (type(level) is int or isinstance(level, str) and level.upper() in LEVELS):
        yield f'log_level={level!r:.80}: give one of {", ".join(LEVELS[:5])}'
    if cfg.get('compile') is not None and not isinstance(cfg['compile'], (bool, Mapping)):
        yield f'compile={cfg["compile"]!r:.80}: give True, False or a dict of options of torch.compile'
    for key in ('cuda_graph', 'check_masks'):
        if not isinstance(cfg.get(key, False), bool):
            yield f'{key}={cfg[key]!r:.80}: give True or False'
    env = cfg['env_cfg'] if _is_dict(cfg.get('env_cfg')) else {}
    start = (env.get('mp_cfg') or {}).get('mp_start_method')
    if start not in (None, 'fork', 'spawn', 'forkserver'):
        yield f"env_cfg.mp_cfg.mp_start_method={start!r:.80}: give 'fork', 'spawn' or 'forkserver'"
    scale = cfg.get('auto_scale_lr')
    if _is_dict(scale) and scale.get('enable') and scale.get('base_batch_size') is None:
        yield 'auto_scale_lr has no base_batch_size: give the batch size for which the learning rate is meant'
    names = cfg.get('petl_checkpointing')
    if names is not None and not isinstance(names, (str, list, tuple, bool)):
        yield f'petl_checkpointing={names!r:.80}: give a list of names of submodules'


def _loader(loader: Any, name: str) -> Iterator[str]:
    """What is wrong with the form of a loader."""
    if not _is_dict(loader):
        return
    if loader.get('dataset') is None or is_plain(loader['dataset']):
        yield f'{name}.dataset={loader.get("dataset")!r:.80}: give a dict with the type of the data set'
    for key in ('sampler', 'batch_sampler', 'collate_fn'):
        if is_plain(loader.get(key)):
            yield f'{name}.{key}={loader[key]!r:.80}: give a dict with a type'
    for where, node in dicts(loader.get('dataset'), f'{name}.dataset'):
        steps = node.get('pipeline', [{}])
        if is_plain(steps) or not steps or isinstance(steps, (list, tuple)) and any(is_plain(step) for step in steps):
            yield f'{where}.pipeline={steps!r:.80}: give a list of transforms, each a dict with a type'


def _unread(cfg: Dict[str, Any]) -> Iterator[str]:
    """Keys that nobody reads and that look as if somebody should; a variable of the config is told by its value, which
    stands in the key that is read too."""
    for key, value in cfg.items():
        if key in KEYS or key in OWN_KEYS:
            continue
        if key in OLD_KEYS and _stands_nowhere(value, cfg, key, whole=True):
            yield f'nobody reads the key {key!r}: write {OLD_KEYS[key]}'
        if key == 'data' and isinstance(value, Mapping) and {'samples_per_gpu', 'train', 'val'} & set(value):
            yield "nobody reads the key 'data': write train_dataloader, val_dataloader and test_dataloader"
        near = difflib.get_close_matches(key, KEYS, 1, 0.78)
        if near and isinstance(value, (dict, list)) and _stands_nowhere(value, cfg, key):
            yield f'nobody reads the key {key!r}; did you mean {near[0]!r}?'


def _stands_nowhere(value: Any, cfg: Dict[str, Any], own: str, whole: bool = False) -> bool:
    """Whether no section holds this value, or (unless ``whole``) all of a dict's entries."""

    def holds(node: Any) -> bool:
        if node is value or (type(node) is type(value) and node == value):
            return True
        if not whole and isinstance(node, Mapping) and isinstance(value, Mapping) and value and all(
                k in node and node[k] == v for k, v in value.items()):
            return True
        parts = node.values() if isinstance(node, Mapping) else node if isinstance(node, (list, tuple)) else ()
        return any(holds(part) for part in parts)

    return not any(holds(cfg[key]) for key in (*KEYS, *OWN_KEYS) if key in cfg and key != own)


# -- values -----------------------------------------------------------------------------------------------------------


def _values(cfg: Dict[str, Any]) -> Iterator[str]:
    for where, key, value in leaves({k: v for k, v in cfg.items() if k in KEYS}):
        fault = _fault(where, key, value)
        if fault:
            yield f'{where}={value!r:.80}: {fault}'
    for where, node in dicts(cfg.get('model'), 'model'):
        width, heads = node.get('embed_dims'), node.get('num_heads')
        if type(width) is int and type(heads) is int and width % heads:
            yield f'{where}.num_heads={heads}: give a number that divides embed_dims={width}'
    for where, node in dicts(cfg.get('param_scheduler'), 'param_scheduler'):
        begin, end = node.get('begin', 0), node.get('end')
        if _is_number(begin) and _is_number(end) and end <= begin:
            yield f'{where}.end={end}: give an end after its begin={begin}'
    preprocessor = cfg.get('data_preprocessor')
    if _is_dict(preprocessor):
        mean, std = preprocessor.get('mean'), preprocessor.get('std')
        if isinstance(std, (list, tuple)) and not all(_is_number(v) and v > 0 for v in std):
            yield f'data_preprocessor.std={std!r:.80}: give numbers above 0'
        if isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple)) and len(mean) != len(std):
            yield f'data_preprocessor.mean={mean!r:.80}: give {len(std)} numbers, as std has'


def leaves(node: Any, where: str = '', key: str = '') -> Iterator[Tuple[str, str, Any]]:
    """(path, key, value) of every plain value; tuples and lists of numbers count as one."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, f'{where}.{name}' if where else str(name), str(name))
    elif isinstance(node, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in node):
        for number, value in enumerate(node):
            yield from leaves(value, f'{where}.{number}', key)
    else:
        yield where, key, node


def dicts(node: Any, where: str) -> Iterator[Tuple[str, Mapping[str, Any]]]:
    """(path, dict) of every dict in a section, from the outside inwards."""
    if isinstance(node, Mapping):
        yield where, node
        for name, value in node.items():
            yield from dicts(value, f'{where}.{name}')
    elif isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            yield from dicts(value, f'{where}.{number}')


def _fault(where: str, key: str, value: Any) -> str:
    """What to give in place of a value, by its key or its path in the config; '' where it is right."""
    items: List[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(v, float) and not math.isfinite(v) for v in items):
        return 'give a finite number'
    if any(_is_number(v) and abs(v) > LARGEST for v in items):
        return f'give a number of at most {LARGEST:g}'
    return _wrong_kind(key, value, items) or _out_of_range(where, key, value, items)


def _wrong_kind(key: str, value: Any, items: List[Any]) -> str:
    """Of keys that want a whole number, a switch or a text."""
    # type() where isinstance would take True for a number
    whole = type(value) is int
    if key == 'crop_size' and all(type(v) is float and 0 < v <= 1 for v in items):
        return ''  # shares of the picture
    left_out = value is None or whole and value == -1 and key in MINUS_ONE
    if key in POSITIVE and not left_out and not (items and all(type(v) is int and v > 0 for v in items)):
        return 'give a whole number from 1' + (', or -1 for never' if key == 'interval' else '')
    if key in COUNTS and not (whole and value >= 0):
        return 'give a whole number from 0'
    if key == 'max_keep_ckpts' and not (whole and (value == -1 or value > 0)):
        return 'give a whole number from 1, or -1 for all'
    if key == 'checkpoint' and value is not None and not isinstance(value, (str, bool, dict)):
        return 'give the name of a weight file'
    if key in SWITCHES and value is not None and not isinstance(value, bool):
        return 'give True or False'
    if key == 'filename_tmpl' and isinstance(value, str) and not {'{', '%'} & {*value}:
        return "write {} where the number goes, as in 'epoch_{}.pth'"
    return ''


def _out_of_range(where: str, key: str, value: Any, items: List[Any]) -> str:
    """Of keys that want a number between bounds."""
    if key in RATES and not all(_is_number(v) and 0 <= v < 1 for v in items):
        return 'give a number from 0 to below 1'
    if key == 'T_max' and value is not None and not (_is_number(value) and value > 0):
        return 'give a number above 0'
    if where.startswith('param_scheduler') and key == 'begin' and not (_is_number(value) and value >= 0):
        return 'give a number from 0'
    if where.endswith('optimizer.lr') and not (_is_number(value) and 0 < value <= 1e6):
        return 'give a learning rate above 0 and at most 1e6'
    if where.endswith('optimizer.momentum') and _is_number(value) and not 0 <= value < 1:
        return 'give a number from 0 to below 1'
    if where.endswith(('clip_grad.max_norm', 'clip_grad.clip_value')) and not (_is_number(value) and value > 0):
        return 'give a number above 0'
    if key == 'loss_weight' and _is_number(value) and value < 0:
        return 'give a number from 0: below, the loss would grow'
    if where.endswith('optimizer.weight_decay') and not (_is_number(value) and value >= 0):
        return 'give a number from 0'
    if where == 'randomness.seed' and value is not None and not (type(value) is int and 0 <= value < 2**32):
        return 'give a whole number from 0 to 4294967295'
    return ''


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
