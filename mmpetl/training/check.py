# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a config, before anything is built: one line with the file, the key, the value, and how to mend
it."""

import difflib
import math
from typing import Any, Iterator, Tuple

#: Top-level keys that runs read. Other names are variables of the config.
KEYS = ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_cfg', 'test_cfg',
        'val_evaluator', 'test_evaluator', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'default_hooks',
        'custom_hooks', 'data_preprocessor', 'load_from', 'resume', 'launcher', 'env_cfg', 'log_processor', 'log_level',
        'visualizer', 'vis_backends', 'default_scope', 'randomness', 'experiment_name', 'custom_imports', 'work_dir')
#: Whole numbers from 1, or tuples of them.
POSITIVE = ('batch_size', 'max_epochs', 'max_iters', 'val_interval', 'num_classes', 'in_channels', 'embed_dims',
            'num_layers', 'num_heads', 'patch_size', 'crop_size', 'clip_len', 'frame_interval', 'num_clips',
            'num_crops', 'accumulative_counts', 'num_repeats')
#: Rates from 0 to below 1.
RATES = ('drop_rate', 'drop_path_rate', 'dropout_ratio', 'attn_drop_rate')


def check_config(cfg: Any, source: str) -> None:
    """Refuse what could only fail later, or would train nothing and say nothing.

    Args:
        cfg: The config of a run, options merged.
        source: Its file, for messages.

    Raises:
        ValueError: The first fault.
    """
    for key in cfg:
        near = difflib.get_close_matches(key, KEYS, 1, 0.8) if key not in KEYS else []
        if near and near[0] not in cfg and isinstance(cfg[key], (dict, list)):
            raise ValueError(f'{source}: nobody reads the key {key!r}; did you mean {near[0]!r}?')
    for where, key, value in _leaves(cfg, ''):
        fault = _fault(where, key, value)
        if fault:
            raise ValueError(f'{source}: {where}={value!r}: {fault}')


def _leaves(node: Any, where: str, key: str = '') -> Iterator[Tuple[str, str, Any]]:
    """(path, key, value) of every plain value; tuples and lists of numbers count as one."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f'{where}.{name}' if where else str(name), str(name))
    elif isinstance(node, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in node):
        for number, value in enumerate(node):
            yield from _leaves(value, f'{where}.{number}', key)
    else:
        yield where, key, node


def _fault(where: str, key: str, value: Any) -> str:
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(v, float) and not math.isfinite(v) for v in items):
        return 'give a finite number'
    if key in POSITIVE and value is not None and not all(type(v) is int and v > 0 for v in items):
        return 'give a whole number from 1'
    if key == 'num_workers' and not (type(value) is int and value >= 0):
        return 'give a whole number from 0'
    if key in RATES and not all(_is_number(v) and 0 <= v < 1 for v in items):
        return 'give a number from 0 to below 1'
    if where.endswith('optimizer.lr') and not (_is_number(value) and 0 < value <= 1e6):
        return 'give a learning rate above 0 and at most 1e6'
    if where.endswith('optimizer.weight_decay') and not (_is_number(value) and value >= 0):
        return 'give a number from 0'
    return ''


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
