# SPDX-License-Identifier: Apache-2.0
"""From flags to the config of a run.

The scope (and with it the small differences between mmpretrain and mmaction2) is taken from the config's
``default_scope``.
"""

import argparse
import importlib.util
import logging
import os
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from ..recipes import find_config
from ..weights.adapter_file import is_adapter
from ..weights.errors import WeightFileError
from ..weights.hub import is_peft, local_path
from ..weights.io import file_kind, load_file
from .check import check_complete, check_config, check_sections
from .flags import LOGGERS
from .lifecycle import name_base
from .options import merge_options
from .tasks import apply_task


def load_config(path: str) -> Config:
    """Read a config file, given by its path or, for a shipped one, by its name.

    Raises:
        FileNotFoundError: If there is none; near names are offered.
        ValueError: If it, or a base of it, is no valid Python, or a base names itself.
    """
    file = find_config(path)
    if os.path.isdir(file):
        raise FileNotFoundError(f'{file} is a folder: name a config file in it')
    try:
        return Config.fromfile(file)
    except Exception as error:  # a config is a program, which may raise anything
        circle = isinstance(error, RecursionError)
        cause = '_base_ goes round in a circle' if circle else ' '.join(str(error).split())
        cause = cause.split(', the current sys.path is')[0]
        raise ValueError(f'{file}: the config cannot be read: {type(error).__name__}: {cause:.300}; mend it, or the '
                         'file that its _base_ names') from error


def _check_checkpoint(path: str, resume: bool = False) -> None:
    """Look at a local checkpoint before anything expensive is built, and fetch an adapter of the hub; other addresses
    are left to the runner."""
    path = local_path(path)
    if is_peft(path) and not resume:
        return
    # the latter: a folder that DeepSpeed wrote
    if '://' in path or os.path.isfile(os.path.join(path, 'latest')):
        return
    file_kind(path)
    if not resume:
        return
    how = 'give --resume a checkpoint (epoch_N.pth), or begin a run with load_from=...'
    if is_adapter(path):
        raise WeightFileError(path, 'an adapter file cannot be resumed, it has no optimizer and no step', how)
    if not {'epoch', 'iter'} <= set(load_file(path).get('meta') or {}):
        raise WeightFileError(path, 'no checkpoint of a run, it says neither epoch nor iteration', how)


def _set_common(cfg: Config, args: argparse.Namespace) -> None:
    """What training and testing share: launcher and work dir (command line, else config, else the config's name)."""
    cfg.launcher = args.launcher
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))  # older launchers give it as a flag only
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)


def _set_dataloaders(cfg: Config, fields: Sequence[str], args: argparse.Namespace) -> None:
    """mmpretrain's tools complete its dataloaders, mmaction2's do not; the two flags work for both."""
    for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = (cfg.get(field) or {}).get('dataset')
        while isinstance(dataset, dict):  # upstream's data sets do not know what ~ is
            if isinstance(dataset.get('data_root'), str):
                dataset['data_root'] = os.path.expanduser(dataset['data_root'])
            dataset = dataset.get('dataset')
    for field in fields:
        loader = cfg.get(field)
        if not isinstance(loader, dict):
            continue
        if cfg.get('default_scope') == 'mmpretrain':
            loader.setdefault('pin_memory', torch.cuda.is_available())
            loader.setdefault('persistent_workers', True)
            loader.setdefault('collate_fn', dict(type='default_collate'))
        if args.no_pin_memory:
            loader['pin_memory'] = False
        if getattr(args, 'no_persistent_workers', False):
            loader['persistent_workers'] = False


def _finish(cfg: Config, args: argparse.Namespace) -> Config:
    """Apply ``--cfg-options`` last, as both libraries do, and drop what torch refuses: persistent workers that do not
    exist."""
    if getattr(args, 'force', False):
        cfg.force_adapter = True
    merge_options(cfg, args.cfg_options)
    apply_task(cfg, args.cfg_options)
    for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(field)
        if isinstance(loader, dict) and not loader.get('num_workers'):
            loader['persistent_workers'] = False
    check_config(cfg, args.config)
    return cfg


def _set_amp(cfg: Config) -> None:
    """Switch the optimizer wrapper to mixed precision: float16 on a GPU unless the config names a type, bfloat16 on the
    CPU.

    Raises:
        ValueError: If the config has an optimizer wrapper of another kind.
    """
    from mmengine.device import get_device
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    kind = kind if isinstance(kind, str) else kind.__name__
    if kind != 'OptimWrapper' and not kind.endswith('AmpOptimWrapper'):
        raise ValueError(f'--amp does not work with optim_wrapper.type={kind!r}: use OptimWrapper or AmpOptimWrapper')
    if get_device() == 'cpu':
        wrapper['type'] = 'mmpetl.CpuAmpOptimWrapper'
        for key in ('loss_scale', 'dtype'):
            wrapper.pop(key, None)
        known = getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', None)
        if known is not None and not known():
            print_log('--amp: this processor has no instructions for bfloat16, so a step may take several times as '
                      'long: leave --amp out', 'current', logging.WARNING)
        return
    if kind == 'OptimWrapper':
        wrapper['type'] = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def _set_loggers(cfg: Config, names: Sequence[str], run: str) -> None:
    """Let MMEngine's visualizer write to these loggers beside the files of the work dir.

    Raises:
        ValueError: If a package is not installed.
    """
    for name in names:
        backend, module, package = LOGGERS[name]
        if importlib.util.find_spec(module) is None:
            raise ValueError(f'--log-to {name} needs a package that is not installed: pip install {package}')
        more: dict[str, Any] = dict(
            wandb=dict(init_kwargs=dict(project='mmpetl', name=run)), mlflow=dict(exp_name='mmpetl', run_name=run))
        visualizer = cfg.get('visualizer') or dict(type='Visualizer')
        backends = list(visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])
        cfg.visualizer = {**visualizer, 'vis_backends': [*backends, dict(type=backend, **more.get(name, {}))]}


def train_config(args: argparse.Namespace) -> Config:
    """The config of a training run.

    Raises:
        ValueError: If a flag does not fit the config or the machine.
        FileNotFoundError: If the config or the checkpoint to resume from does not exist.
    """
    if args.overwrite and args.resume is not None:
        raise ValueError('--overwrite begins anew and --resume goes on: give one of them')
    cfg = load_config(args.config)
    check_sections(cfg, args.config)
    _set_common(cfg, args)
    _set_loggers(cfg, args.log_to or (), Path(args.config).stem)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp and cfg.get('optim_wrapper') is not None:
        _set_amp(cfg)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    chosen = dict(seed=args.seed, diff_rank_seed=args.diff_rank_seed or None, deterministic=args.deterministic or None)
    given = {key: value for key, value in chosen.items() if value is not None}
    cfg.randomness = {**(cfg.get('randomness') or dict(seed=None)), **given}
    _set_dataloaders(cfg, ('train_dataloader', 'val_dataloader', 'test_dataloader'), args)
    _finish(cfg, args)
    check_complete(cfg, args.config)
    if args.auto_scale_lr and not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise ValueError(f'--auto-scale-lr: {args.config} has no auto_scale_lr=dict(base_batch_size=...): write it, '
                         'or leave the flag out')
    if args.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    if cfg.get('resume') and cfg.get('load_from'):
        _check_checkpoint(cfg.load_from, resume=True)
    return cfg


def _set_visualization(cfg: Config, args: argparse.Namespace) -> None:
    scoped = dict(mmpretrain='UniversalVisualizer', mmaction='ActionVisualizer').get(cfg.get('default_scope'))
    if scoped and cfg.get('visualizer') is None:
        cfg.visualizer = ConfigDict(type=scoped)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hook = hooks.setdefault('visualization', ConfigDict(type='VisualizationHook'))
    if cfg.get('default_scope') == 'mmaction' and hook.get('type') == 'VisualizationHook':
        hook['type'] = 'mmpetl.ShowClipsHook'  # upstream's ends at samples of several views
    if cfg.get('default_scope') == 'mmseg':  # mmsegmentation's hook draws into the visualizer's folder
        hook.update(draw=True, show=args.show, wait_time=args.wait_time, interval=args.interval)
        cfg.visualizer.save_dir = os.path.join(cfg.work_dir, args.show_dir or '')
        return
    hook.update(enable=True, show=args.show, wait_time=args.wait_time, out_dir=args.show_dir, interval=args.interval)


def _set_tta(cfg: Config) -> None:
    """Wrap model and test pipeline for test-time augmentation.

    Raises:
        ValueError: If the config has no recipe and mmpretrain's default (flips, mean score) does not apply.
    """
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        if cfg.get('default_scope') != 'mmpretrain':
            raise ValueError(
                '--tta: the config has no tta_model and tta_pipeline, and only image configs have a default')
        cfg.setdefault('tta_model', ConfigDict(type='mmpretrain.AverageClsScoreTTA'))
        if 'tta_pipeline' not in cfg:
            flips = [[dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)], [dataset.pipeline[-1]]]
            cfg.tta_pipeline = [*deepcopy(dataset.pipeline[:-1]), dict(type='TestTimeAug', transforms=flips)]
    for key, kind, what in (('tta_model', dict, 'a dict'), ('tta_pipeline', list, 'a list of transforms')):
        if not isinstance(cfg[key], kind):
            raise ValueError(f'--tta: {key}={cfg[key]!r:.80}: give {what}, or leave it out')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def part_of(path: str) -> str:
    """Where a result is written before it is complete: the same folder and suffix."""
    return str(Path(path).with_suffix('.part' + Path(path).suffix))


def dumps_of(args: argparse.Namespace) -> list[str]:
    """Files that receive the predictions."""
    wanted = [args.dump, args.out if args.out_item in (None, 'pred') else None]
    return list(dict.fromkeys(path for path in wanted if path))


def _leave_out_metrics(cfg: Config, args: argparse.Namespace) -> None:
    """Test images without labels have predictions and no metrics.

    Raises:
        ValueError: If no file receives the predictions.
    """
    dataset = cfg.test_dataloader.get('dataset')
    while isinstance(dataset, dict) and isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    if not isinstance(dataset, dict) or dataset.get('with_label', True):
        return
    if not dumps_of(args):
        raise ValueError('test_dataloader.dataset.with_label=False: without labels there is nothing to score; write '
                         'the predictions by --dump FILE.pkl')
    cfg.test_evaluator = [dict(type='DumpResults', out_file_path=part_of(path)) for path in dumps_of(args)]


def _set_dumps(cfg: Config, args: argparse.Namespace) -> None:
    """Add a metric that writes the predictions, and check the names of all result files first.

    Raises:
        ValueError: If a name has a suffix that cannot hold the result, or a file cannot be written.
    """
    _check_results(args)
    for path in dumps_of(args):
        metric = dict(type='DumpResults', out_file_path=part_of(path))
        evaluator = cfg.get('test_evaluator')
        # An evaluator is a metric, a list of metrics, or a dict that holds either under 'metrics'.
        if isinstance(evaluator, dict) and 'metrics' in evaluator:
            evaluator['metrics'] = [*_listed(evaluator['metrics']), metric]
        else:
            cfg.test_evaluator = [*_listed(evaluator), metric]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] if value else []


def _check_results(args: argparse.Namespace) -> None:
    """Refuse result files that could not be written after hours of work."""
    if args.out is None and args.out_item is not None:
        raise ValueError('--out-item needs --out: name the file that receives the result')
    for path in dumps_of(args):
        if not path.endswith(('.pkl', '.pickle')):
            hint = '; for the metrics add --out-item metrics' if path == args.out else ''
            raise ValueError(f'predictions are written to .pkl files, got {path}: name it so{hint}')
    if args.out_item == 'metrics' and not args.out.endswith(('.json', '.yaml', '.yml', '.pkl', '.pickle')):
        raise ValueError(f'metrics are written to .json, .yaml or .pkl files, got {args.out}: name it so')
    for path in filter(None, [*dumps_of(args), args.out]):
        folder = os.path.dirname(os.path.abspath(path))
        try:
            os.makedirs(folder, exist_ok=True)
            # The only sure answer to whether a file can be written there.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(f'{path} cannot be written: {error.strerror}; name another file') from error


def test_config(args: argparse.Namespace) -> Config:
    """The config of a test run.

    Raises:
        ValueError: If a flag does not fit the config, or the checkpoint is no weight file.
        FileNotFoundError: If the config or the checkpoint does not exist.
    """
    cfg = load_config(args.config)
    check_sections(cfg, args.config)
    _set_common(cfg, args)
    if args.checkpoint is not None:
        _check_checkpoint(args.checkpoint)
    name_base(cfg)
    cfg.load_from = args.checkpoint
    missing = [key for key in ('test_dataloader', 'test_cfg', 'test_evaluator') if cfg.get(key) is None]
    if missing:
        raise ValueError(f'{args.config} cannot be tested: it has no {" and no ".join(missing)}')
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.wait_time < 0:
        raise ValueError(f'--wait-time {args.wait_time:g}: give seconds from 0')
    if args.show or args.show_dir is not None:
        _set_visualization(cfg, args)
    _set_dumps(cfg, args)
    _set_dataloaders(cfg, ('test_dataloader', ), args)
    if cfg.launcher == 'none' or 'DeepSpeed' in str((cfg.get('strategy') or {}).get('type')):
        # One process needs no strategy for several, and DeepSpeed shares out gradients and optimizer state, which
        # testing has not.
        cfg.pop('strategy', None)
        cfg.pop('runner_type', None)
    _finish(cfg, args)
    if args.tta:  # around the model and pipeline that the command line has changed
        _set_tta(cfg)
    check_complete(cfg, args.config, 'test')
    _leave_out_metrics(cfg, args)  # what the command line says of the data included
    return cfg
