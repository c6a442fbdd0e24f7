# SPDX-License-Identifier: Apache-2.0
"""What a training run or a test tells its user: data, parameters, where things lie."""

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from ..console import is_quiet, set_epochs
from ..tuning import summary
from ..weights.io import file_size

#: Classes that are named; of more the first of them.
NAMED = 6


def _part(word: str, dataset: Any) -> str:
    return f'{len(dataset):,} to {word}' if hasattr(dataset, '__len__') else f'a stream to {word}'


def data_line(parts: Sequence[tuple[str, Any]]) -> str:
    """``'1,400 to train, 600 to validate; 20 classes: airplane, anchor ...'``.

    Args:
        parts: What is done with a data set ('train', 'validate', 'test'), and the data set.
    """
    text = ', '.join(_part(word, dataset) for word, dataset in parts)
    classes = next((c for _, d in parts if (c := (getattr(d, 'metainfo', None) or {}).get('classes'))), None)
    if not classes:
        return text
    names = ', '.join(map(str, classes[:NAMED])) + (' ...' if len(classes) > NAMED else '')
    return f'{text}; {len(classes)} classes: {names}'


def parameters_line(model: Any) -> str:
    """``'228,884 parameters train: LoRA 221,184, head 7,700; base 21,549,312, frozen'``."""
    try:
        found = summary(model)
    except ValueError:  # nothing is attached: a config of another package
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return f'{trained:,} of {sum(p.numel() for p in model.parameters()):,} parameters'
    rows = [(name, count) for name, count in found.rows() if count and name not in ('without head', 'total')]
    parts = ', '.join(f'{name} {count:,}' for name, count in rows)
    frozen = 'frozen' if not found.tuned else 'the rest frozen'
    return f'{found.total:,} parameters: {parts} (base: {found.base:,}, {frozen})'


def log_file(logger: logging.Logger) -> Optional[str]:
    """The log file of a run, if it has one."""
    return next((h.baseFilename for h in logger.handlers if isinstance(h, logging.FileHandler)), None)


def near(path: str) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return path if relative.startswith('..') else relative


def test_command() -> str:
    """The command that tests, as this process was started: by a script, or else as a command or a module of it."""
    folder, script = os.path.split(sys.argv[0])
    is_script = script == 'train.py' and getattr(sys.modules['__main__'], '__spec__', None) is None
    return f'python {shlex.quote(os.path.join(folder, "test.py"))}' if is_script else 'mmpetl test'


def by_iterations(runner: Any) -> bool:
    """Whether a training is counted in iterations; MMEngine calls that one epoch."""
    return isinstance(runner.train_loop, IterBasedTrainLoop) or not getattr(runner.train_loop, 'max_epochs', None)


class CommandHook(Hook):
    """A hook of the command that trains, not of the config: of trainings within a training each has it."""


class TellHook(CommandHook):
    """Says before training and testing what there is to know, each line once; see the module."""

    priority = 'VERY_HIGH'  # before what takes long, and before what refuses the data

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def _say(self, runner: Any, word: str, text: str) -> None:
        if (word, text) not in self._said:
            runner.logger.info(f'{word:<10}{text}')
            self._said.add((word, text))

    def _log(self, runner: Any) -> None:
        path = log_file(runner.logger)
        if path and is_quiet():
            self._say(runner, 'log', near(path))

    def before_train(self, runner: Any) -> None:
        """Data, what trains, base, log."""
        set_epochs(None if by_iterations(runner) else runner.max_epochs)
        val = getattr(getattr(runner, '_val_loop', None), 'dataloader', None)
        parts = [('train', runner.train_dataloader.dataset)] + ([('validate', val.dataset)] if val is not None else [])
        self._say(runner, 'data', data_line(parts))
        self._say(runner, 'trains', parameters_line(getattr(getattr(runner, 'strategy', None), 'whole', runner.model)))
        base = ((runner.cfg.get('model') or {}).get('backbone') or {}).get('init_cfg')
        if isinstance(base, dict) and base.get('checkpoint'):
            self._say(runner, 'base', str(base['checkpoint']))
        self._log(runner)

    def before_test(self, runner: Any) -> None:
        """Data and log."""
        self._say(runner, 'data', data_line([('test', runner.test_dataloader.dataset)]))
        self._log(runner)


def tell_end(runner: Any, config: str, options: Any = None) -> None:
    """Say where the results of a training lie, and what can be done with them.

    Args:
        runner: After the training.
        config: As the command named it.
        options: Overrides of the command; with them the copy of the config in the work dir is what tests.
    """
    if not is_main_process():
        return
    copy = os.path.join(runner.work_dir, os.path.basename(runner.cfg.filename or ''))
    config = near(copy) if options and os.path.isfile(copy) else config
    names = [name for name in ('adapter.safetensors', 'best_adapter.safetensors')
             if os.path.isfile(os.path.join(runner.work_dir, name))]
    for name in names:
        path = os.path.join(runner.work_dir, name)
        word = name.split('.')[0].replace('_', ' ').replace('best adapter', 'best')
        runner.logger.info(f'{word:<10}{near(path)} ({file_size(path)})')
    if names:
        file = near(os.path.join(runner.work_dir, names[-1]))
        runner.logger.info(f'{"next":<10}{test_command()} {shlex.join([config, file])}')
