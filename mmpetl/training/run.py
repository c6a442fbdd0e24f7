# SPDX-License-Identifier: Apache-2.0
"""Training and testing: what ``tools/train.py``, ``tools/test.py`` and the commands of the same names do."""

import argparse
import errno
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS

from .. import compat
from ..console import quiet_class
from ..datasets.how_to_get import and_get
from ..hooks.adapter import AdapterHook
from ..hooks.adapter_check import BelongsHook
from ..hooks.mask_guard import MaskGuardHook
from ..hooks.name_samples import NameSamplesHook
from ..tuning import unwrap
from ..weights.hub import is_peft, local_path
from ..weights.io import file_kind
from .build import load_trained
from .check import leaves
from .compiling import compile_blocks_in
from .config import dumps_of, part_of, test_config, train_config
from .flags import test_parser, train_parser
from .graphs import graph_backbone_of
from .lifecycle import name_base, prepare
from .loaders import close_loaders_after
from .naming import naming_keys
from .progress_bar import training_bar
from .said import TellHook, near, tell_end
from .work_dir import claimed, is_first_process, make, newest_checkpoint, note_command, refuse_or_clear

_runs = itertools.count()
#: Launcher -> a variable that it sets, and how it is used.
_LAUNCHERS = dict(
    pytorch=('RANK', 'torchrun: use bash tools/dist_train.sh CONFIG GPUS'),
    slurm=('SLURM_PROCID', 'srun: use bash tools/slurm_train.sh'),
    mpi=('OMPI_COMM_WORLD_LOCAL_RANK', 'mpirun of Open MPI: put it before the command, or leave --launcher out'))


def _set_processes(cfg: Config) -> None:
    """Prepare a run of several processes, on a machine with or without GPUs.

    Raises:
        ValueError: If the launcher's variables are missing, or there are more processes than GPUs.
    """
    if cfg.get('launcher', 'none') == 'none':
        return
    backbone = (cfg.get('model') or {}).get('backbone')
    if isinstance(backbone, dict) and str(backbone.get('base_dtype')).endswith(('int8', 'nf4')):
        raise ValueError(f'--launcher {cfg.launcher}: base_dtype={backbone["base_dtype"]!r} is for one process, as the '
                         "weights cannot be sent to others: use base_dtype='bf16', or one process")
    variable, how = _LAUNCHERS.get(cfg.launcher, ('', ''))
    if variable and variable not in os.environ:
        raise ValueError(f'--launcher {cfg.launcher} is for {how}; {variable} is not set here')
    if cfg.launcher == 'pytorch':
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


def _keeping_config(kind: Any) -> Any:
    """A runner class that leaves a config that lies in its folder as it is: that of the training, whose options a test
    or its own options would replace."""

    def dump_config(self: Any) -> None:
        name = os.path.basename(self.cfg.filename or '')
        if not name or not os.path.exists(os.path.join(self.work_dir, name)):
            kind.dump_config(self)

    return type(kind.__name__, (kind, ), dict(dump_config=dump_config, __module__=kind.__module__))


def build_runner(cfg: Config, trains: bool = True) -> Any:
    """Build the runner that a config describes, ready for several processes and with gradient checkpointing that works
    for adapters.

    Args:
        cfg: A complete config. ``runner_type`` chooses another runner than MMEngine's, ``petl_checkpointing`` (names or
            globs of submodules) what is recomputed in the backward pass. MMEngine's own ``activation_checkpointing``
            would leave adapters without a gradient and is taken as ``petl_checkpointing``.
        trains: False for a test, which leaves the config that lies in the work dir as it is.

    Returns:
        The runner, for example an ``mmengine.runner.Runner``.

    Raises:
        ValueError: If the config does not fit the machine, or ``petl_checkpointing`` names no submodule.
    """
    resumed = prepare(cfg)
    _set_processes(cfg)
    _set_name(cfg)
    reentrant = cfg.pop('activation_checkpointing', None)
    names = cfg.petl_checkpointing = cfg.get('petl_checkpointing') or reentrant
    if 'runner_type' in cfg:
        cfg.setdefault('env_cfg', {})
    kind = RUNNERS.get(cfg.get('runner_type', 'Runner'))
    if kind is not None:
        kind = quiet_class(kind) if trains else _keeping_config(quiet_class(kind))
    runner = RUNNERS.build(cfg) if kind is None else kind.from_cfg(cfg)
    if not any(isinstance(hook, AdapterHook) for hook in runner.hooks):
        runner.register_hook(BelongsHook())
    runner.register_hook(NameSamplesHook())
    runner.register_hook(MaskGuardHook())
    if resumed is not None:
        runner.logger.info(str(resumed))
    if reentrant:
        runner.logger.warning(
            'activation_checkpointing is reentrant and gives adapters no gradient: taken as petl_checkpointing')
    if names and isinstance(runner.model, torch.nn.Module):
        chosen = compat.nonreentrant_checkpointing(runner.model, names)
        runner.logger.info(f'Recomputed in the backward pass: {", ".join(chosen)}')
    elif names:
        runner.register_hook(_checkpointing_hook(names))
    compile_blocks_in(runner)
    graph_backbone_of(runner)
    close_loaders_after(runner, 'train', 'val', 'test')
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
                if path and isinstance(value, str) and value and (
                        os.path.join('/', value).rstrip('/') in path
                        or key == 'data_root' and path.startswith(os.path.abspath(value) + os.sep)):
                    raise FileNotFoundError(
                        f'{error.filename} does not exist: prepare the data set, or set {name}.{key} '
                        f'(in the config or by --cfg-options) to where it is{and_get(error.filename)}') from error
        if path:
            raise FileNotFoundError(
                f'{error.filename} does not exist: mend the path, or the list that names it') from error
        raise


@contextmanager
def _naming_a_full_disk(work_dir: str) -> Iterator[None]:
    """Name the folder where a full disk names nothing.

    Raises:
        OSError: In place of one without a name.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not error.filename:
            raise OSError(error.errno, f'{error.strerror}, while writing into', work_dir) from error
        raise


@contextmanager
def _saying_what_is_kept(work_dir: str) -> Iterator[None]:
    """Say at Ctrl-C from where the run can go on, unless the run does."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if str(stop):
            raise
        kept = newest_checkpoint(work_dir)
        raise KeyboardInterrupt(
            f'{near(kept.path)}, {kept.where}, is kept; the same command with --resume goes on from it' if kept.path
            else 'before the first checkpoint; the same command begins anew') from None


def train(argv: Sequence[str]) -> None:
    """``tools/train.py``: train the model that a config describes."""
    run_training(train_parser().parse_args(argv))


def _init_untrained(model: torch.nn.Module, config: str) -> None:
    """Load the base of a model that is tested as it is; a runner that only tests would leave it random.

    Raises:
        ValueError: If something of the model trains, and a checkpoint therefore must hold it.
    """
    model = unwrap(model)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if count:
        raise ValueError(f'{config} trains {count:,} parameters: name the checkpoint or adapter file that holds them')
    model.init_weights()


def test(argv: Sequence[str]) -> dict[str, float]:
    """``tools/test.py``: test a checkpoint, optionally writing predictions or metrics.

    Returns:
        The metrics.
    """
    return run_test(test_parser().parse_args(argv))


def _check_base(cfg: Config) -> None:
    """See that the weight files which the model begins with are there, before thousands of videos are opened and before
    ``--overwrite`` removes anything.

    Raises:
        FileNotFoundError: Saying how to get the file.
    """
    for where, _, path in leaves(cfg.get('model')):
        if where.endswith('init_cfg.checkpoint') and isinstance(path, str) and '://' not in path:
            path = os.path.expanduser(path)
            if not os.path.exists(path):
                file_kind(path)


def run_training(args: argparse.Namespace) -> None:
    """Train with parsed arguments.

    Raises:
        ValueError: If the work dir is in use, or holds a run and neither ``--resume`` nor ``--overwrite`` is given.
    """
    cfg = train_config(args)
    if not cfg.get('resume'):
        name_base(cfg)
    with claimed(cfg.work_dir), naming_keys(cfg, args.config), _naming_data_keys(cfg), _naming_a_full_disk(
            cfg.work_dir):
        _check_base(cfg)
        if not cfg.get('resume') and (cfg.train_cfg.get('phases') or ['train'])[0] == 'train':
            refuse_or_clear(cfg.work_dir, args.overwrite)
        if is_first_process():
            note_command(cfg.work_dir, sys.argv)
        runner = build_runner(cfg)
        runner.register_hook(TellHook())
        with _saying_what_is_kept(cfg.work_dir), training_bar(runner):
            runner.train()
        tell_end(runner, args.config, args.cfg_options)


def run_test(args: argparse.Namespace) -> dict[str, float]:
    """Test with parsed arguments; see :func:`test`."""
    cfg = test_config(args)
    make(cfg.work_dir)
    # The runner reads files; a folder of peft is put on the model that it has built.
    folder = None
    if cfg.load_from is not None and is_peft(local_path(cfg.load_from)):
        folder, cfg.load_from = cfg.load_from, None
    with naming_keys(cfg, args.config), _naming_data_keys(cfg):
        runner = build_runner(cfg, trains=False)
        runner.register_hook(TellHook())
        if folder:
            load_trained(unwrap(runner.model), folder, cfg)
        elif cfg.load_from is None:
            _init_untrained(runner.model, args.config)
        metrics = runner.test()
    if mmengine.dist.is_main_process():
        if args.out_item == 'metrics':
            mmengine.dump(metrics, part_of(args.out))
            os.replace(part_of(args.out), args.out)
        for path in dumps_of(args):
            os.replace(part_of(path), path)
    return metrics
