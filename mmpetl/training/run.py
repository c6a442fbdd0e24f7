"""Training and testing from the command line: what ``tools/train.py`` and ``tools/test.py`` do.

The flags are the union of mmpretrain's and mmaction2's, in the same positional order. The scope (and with it the small
differences between the two libraries) is taken from the config's ``default_scope``.
"""

import argparse
import difflib
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import RUNNERS

from .. import compat
from ..weights.io import file_kind
from .tasks import apply_task

_runs = itertools.count()


# -- arguments --------------------------------------------------------------------------------------------------------


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--work-dir', help='folder of logs and checkpoints; default work_dirs/<name of the config>')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override entries of the config, for example model.backbone.petl.0.rank=4 or key="[(a,b),(c,d)]"')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--no-pin-memory', action='store_true', help='no pinned memory in the dataloaders')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='what started the processes')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')
    parser.add_argument('--debug', action='store_true', help='show tracebacks (as MMPETL_DEBUG=1 does)')


def train_parser() -> argparse.ArgumentParser:
    """The arguments of ``tools/train.py``."""
    parser = argparse.ArgumentParser(prog='train.py', description='Train a model')
    parser.add_argument('config', help='config file')
    _add_common(parser)
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='resume from this checkpoint, or without a value from the latest one in the work dir')
    parser.add_argument('--no-validate', action='store_true', help='no validation while training')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate by the actual over the base batch size')
    parser.add_argument(
        '--no-persistent-workers', action='store_true', help='start the dataloader workers anew in every epoch')
    parser.add_argument('--seed', type=int, help='random seed')
    parser.add_argument('--diff-rank-seed', action='store_true', help='another seed for each process')
    parser.add_argument('--deterministic', action='store_true', help='deterministic algorithms')
    return parser


def test_parser() -> argparse.ArgumentParser:
    """The arguments of ``tools/test.py``."""
    parser = argparse.ArgumentParser(prog='test.py', description='Test a model')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint or adapter file')
    _add_common(parser)
    parser.add_argument('--out', help='file for the predictions (.pkl) or metrics (.json, .yaml, .pkl), see --out-item')
    parser.add_argument('--out-item', choices=['metrics', 'pred'], help='what --out receives; default pred')
    parser.add_argument('--dump', metavar='PKL', help='file for the predictions, for offline evaluation')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of predictions')
    parser.add_argument('--interval', type=int, default=1, help='show every n-th sample')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds a window stays')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation: the config's tta_model and tta_pipeline, else flips")
    return parser


# -- from arguments to a config ---------------------------------------------------------------------------------------


def load_config(path: str) -> Config:
    """Read a config file.

    Raises:
        FileNotFoundError: If there is none; near names in the same folder are offered.
    """
    if not os.path.isfile(path):
        folder = Path(path).parent
        names = [p.name for p in folder.glob('*.py')] if folder.is_dir() else []
        near = difflib.get_close_matches(Path(path).name, names, n=3)
        hint = f'; did you mean {" or ".join(near)}?' if near else (
            '' if folder.is_dir() else f'; there is no folder {folder}')
        raise FileNotFoundError(f'config {path} does not exist{hint}')
    return Config.fromfile(path)


def _check_checkpoint(path: str) -> None:
    """Look at a local checkpoint before anything expensive is built; other addresses are left to the runner."""
    # the latter: a folder that DeepSpeed wrote
    if '://' not in path and not os.path.isfile(os.path.join(path, 'latest')):
        file_kind(os.path.expanduser(path))


def _set_common(cfg: Config, args: argparse.Namespace) -> None:
    """What training and testing share: launcher and work dir (command line, else config, else the config's name)."""
    cfg.launcher = args.launcher
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)


def _set_dataloaders(cfg: Config, fields: Sequence[str], args: argparse.Namespace) -> None:
    """mmpretrain's tools complete its dataloaders, mmaction2's do not; the two flags work for both."""
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
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    apply_task(cfg, args.cfg_options)
    for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(field)
        if isinstance(loader, dict) and not loader.get('num_workers'):
            loader['persistent_workers'] = False
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
        return
    if kind == 'OptimWrapper':
        wrapper['type'] = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def train_config(args: argparse.Namespace) -> Config:
    """The config of a training run.

    Raises:
        ValueError: If a flag does not fit the config or the machine.
        FileNotFoundError: If the config or the checkpoint to resume from does not exist.
    """
    cfg = load_config(args.config)
    _set_common(cfg, args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        _set_amp(cfg)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        if cfg.get('auto_scale_lr') is None:
            raise ValueError(f'--auto-scale-lr: {args.config} has no auto_scale_lr=dict(base_batch_size=...)')
        cfg.auto_scale_lr.enable = True
    chosen = dict(seed=args.seed, diff_rank_seed=args.diff_rank_seed or None, deterministic=args.deterministic or None)
    cfg.randomness = {
        **(cfg.get('randomness') or dict(seed=None)),
        **{
            k: v
            for k, v in chosen.items() if v is not None
        }
    }
    _set_dataloaders(cfg, ('train_dataloader', 'val_dataloader', 'test_dataloader'), args)
    _finish(cfg, args)
    if cfg.get('resume') and cfg.get('load_from'):
        _check_checkpoint(cfg.load_from)
    return cfg


def _set_visualization(cfg: Config, args: argparse.Namespace) -> None:
    scoped = dict(mmpretrain='UniversalVisualizer', mmaction='ActionVisualizer').get(cfg.get('default_scope'))
    if scoped and cfg.get('visualizer') is None:
        cfg.visualizer = ConfigDict(type=scoped)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hook = hooks.setdefault('visualization', ConfigDict(type='VisualizationHook'))
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
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def _part(path: str) -> str:
    """Where a result is written before it is complete: the same folder and suffix."""
    return str(Path(path).with_suffix('.part' + Path(path).suffix))


def _dumps(args: argparse.Namespace) -> list[str]:
    """Files that receive the predictions."""
    wanted = [args.dump, args.out if args.out_item in (None, 'pred') else None]
    return list(dict.fromkeys(path for path in wanted if path))


def _set_dumps(cfg: Config, args: argparse.Namespace) -> None:
    """Add a metric that writes the predictions, and check the names of all result files first.

    Raises:
        ValueError: If a name has a suffix that cannot hold the result.
    """
    if args.out is None and args.out_item is not None:
        raise ValueError('--out-item needs --out: name the file that receives the result')
    for path in _dumps(args):
        if not path.endswith(('.pkl', '.pickle')):
            hint = '; for the metrics add --out-item metrics' if path == args.out else ''
            raise ValueError(f'predictions are written to .pkl files, got {path}{hint}')
        metric = dict(type='DumpResults', out_file_path=_part(path))
        evaluator = cfg.get('test_evaluator')
        if isinstance(evaluator, dict) and 'metrics' in evaluator:
            found = evaluator['metrics']
            evaluator['metrics'] = [*(found if isinstance(found, (list, tuple)) else [found]), metric]
        else:
            cfg.test_evaluator = [
                *(evaluator if isinstance(evaluator, (list, tuple)) else [evaluator] if evaluator else []), metric
            ]
    if args.out_item == 'metrics' and not args.out.endswith(('.json', '.yaml', '.yml', '.pkl', '.pickle')):
        raise ValueError(f'metrics are written to .json, .yaml or .pkl files, got {args.out}')
    for path in [*_dumps(args), args.out]:
        if path:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)


def test_config(args: argparse.Namespace) -> Config:
    """The config of a test run.

    Raises:
        ValueError: If a flag does not fit the config, or the checkpoint is no weight file.
        FileNotFoundError: If the config or the checkpoint does not exist.
    """
    cfg = load_config(args.config)
    _set_common(cfg, args)
    _check_checkpoint(args.checkpoint)
    cfg.load_from = args.checkpoint
    missing = [key for key in ('test_dataloader', 'test_cfg', 'test_evaluator') if cfg.get(key) is None]
    if missing:
        raise ValueError(f'{args.config} cannot be tested: it has no {" and no ".join(missing)}')
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir is not None:
        _set_visualization(cfg, args)
    _set_dumps(cfg, args)
    _set_dataloaders(cfg, ('test_dataloader', ), args)
    if args.tta:
        _set_tta(cfg)
    if cfg.launcher == 'none' or 'DeepSpeed' in str((cfg.get('strategy') or {}).get('type')):
        # One process needs no strategy for several, and DeepSpeed shares out gradients and optimizer state, which
        # testing has not.
        cfg.pop('strategy', None)
        cfg.pop('runner_type', None)
    return _finish(cfg, args)


# -- from a config to a run -------------------------------------------------------------------------------------------


def _set_processes(cfg: Config) -> None:
    """Prepare a run of several processes, on a machine with or without GPUs.

    Raises:
        ValueError: If the launcher's variables are missing, or there are more processes than GPUs.
    """
    if cfg.get('launcher', 'none') == 'none':
        return
    if cfg.launcher == 'pytorch':
        if 'RANK' not in os.environ:
            raise ValueError('--launcher pytorch is for torchrun: use bash tools/dist_train.sh CONFIG GPUS')
        here, gpus = int(os.environ.get('LOCAL_WORLD_SIZE', 1)), torch.cuda.device_count()
        if torch.cuda.is_available() and here > gpus:
            raise ValueError(f'{here} processes on this machine, which has {gpus} GPU(s): start at most {gpus}')
    if compat.init_cpu_distributed():
        wrapper = dict(compat.CPU_WRAPPER, find_unused_parameters=cfg.get('find_unused_parameters', False))
        cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}


def _set_name(cfg: Config) -> None:
    """Give every runner of a process a name of its own; those of one name and second would share message hub and
    visualizer."""
    number = next(_runs)
    name = cfg.get('experiment_name') or (Path(cfg.filename).stem if cfg.filename else None)
    if number and name:
        cfg.experiment_name = f'{name}_{number}'


def _checkpointing_hook(names: Any) -> Any:
    """A hook for runners that build their model late, inside ``train()``."""
    from mmengine.hooks import Hook

    class CheckpointingHook(Hook):
        """Switch non-reentrant checkpointing on when the model exists."""

        def before_train(self, runner: Any) -> None:
            compat.nonreentrant_checkpointing(runner.model, names)

    return CheckpointingHook()


def build_runner(cfg: Config) -> Any:
    """Build the runner that a config describes, ready for several processes and with gradient checkpointing that works
    for adapters.

    Args:
        cfg: A complete config. ``runner_type`` chooses another runner than MMEngine's, ``petl_checkpointing`` (names or
            globs of submodules) what is recomputed in the backward pass. MMEngine's own ``activation_checkpointing``
            would leave adapters without a gradient and is taken as ``petl_checkpointing``.

    Returns:
        The runner, for example an ``mmengine.runner.Runner``.

    Raises:
        ValueError: If the config does not fit the machine, or ``petl_checkpointing`` names no submodule.
    """
    _set_processes(cfg)
    _set_name(cfg)
    reentrant = cfg.pop('activation_checkpointing', None)
    names = cfg.get('petl_checkpointing') or reentrant
    if 'runner_type' in cfg:
        cfg.setdefault('env_cfg', {})
        runner = RUNNERS.build(cfg)
    else:
        runner = RUNNERS.get('Runner').from_cfg(cfg)
    if reentrant:
        runner.logger.warning(
            'activation_checkpointing is reentrant and gives adapters no gradient: taken as petl_checkpointing')
    if names and isinstance(runner.model, torch.nn.Module):
        chosen = compat.nonreentrant_checkpointing(runner.model, names)
        runner.logger.info(f'Recomputed in the backward pass: {", ".join(chosen)}')
    elif names:
        runner.register_hook(_checkpointing_hook(names))
    compat.warn_environment()
    return runner


@contextmanager
def _naming_data_keys(cfg: Config) -> Iterator[None]:
    """Say which key of the config led to a data file or folder that is not there.

    Raises:
        FileNotFoundError: In place of one that names the path alone.
    """
    try:
        yield
    except FileNotFoundError as error:
        path = os.path.abspath(error.filename) if isinstance(error.filename, str) and error.filename else ''
        for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            name, dataset = f'{field}.dataset', (cfg.get(field) or {}).get('dataset')
            while isinstance(dataset, dict) and isinstance(dataset.get('dataset'), dict):
                name, dataset = f'{name}.dataset', dataset['dataset']
            for key in ('ann_file', 'data_root'):
                value = dataset.get(key) if isinstance(dataset, dict) else None
                if path and isinstance(value, str) and value and os.path.join('/', value).rstrip('/') in path:
                    raise FileNotFoundError(
                        f'{error.filename} does not exist: prepare the data set, or set {name}.{key} '
                        '(in the config or by --cfg-options) to where it is') from error
        raise


def train(argv: Sequence[str]) -> None:
    """``tools/train.py``: train the model that a config describes."""
    cfg = train_config(train_parser().parse_args(argv))
    with _naming_data_keys(cfg):
        build_runner(cfg).train()


def test(argv: Sequence[str]) -> dict[str, float]:
    """``tools/test.py``: test a checkpoint, optionally writing predictions or metrics.

    Returns:
        The metrics.
    """
    import mmengine
    args = test_parser().parse_args(argv)
    cfg = test_config(args)
    with _naming_data_keys(cfg):
        metrics = build_runner(cfg).test()
    if mmengine.dist.is_main_process():
        if args.out_item == 'metrics':
            mmengine.dump(metrics, _part(args.out))
            os.replace(_part(args.out), args.out)
        for path in _dumps(args):
            os.replace(_part(path), path)
    return metrics
