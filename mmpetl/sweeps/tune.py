# SPDX-License-Identifier: Apache-2.0
"""Search for one config: Ray Tune samples, ASHA stops what falls behind, the best parameters become a config.

Where a published grid is to be followed, use a sweep; this is for data of one's own. ASHA: Li et al., A System for
Massively Parallel Hyperparameter Tuning, https://arxiv.org/abs/1810.05934.
"""

import copy
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from mmengine.config import Config
from mmengine.hooks import Hook

from ..costs.memory import on_meta
from ..training.build import build_model
from ..training.check import check_complete, check_config
from ..training.config import load_config
from ..training.lifecycle import prepare
from ..training.options import merge_options
from ..training.run import build_runner
from ..training.tasks import apply_task
from ..weights.io import atomic_write, write_json
from .plan import write_text
from .space import Range, space_of

_MISSING = "search needs Ray Tune: pip install 'ray[tune]'"


class ReportHook(Hook):
    """Tell Ray Tune the score after each validation.

    Args:
        metric: Name of the score, as the validation prints it.
    """

    priority = 'LOWEST'

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def after_val_epoch(self, runner: Any, metrics: Optional[Dict[str, float]] = None) -> None:
        from ray import tune
        found = metrics or {}
        if self.metric not in found:
            raise ValueError(f'--metric {self.metric}: the validation gives {", ".join(found) or "nothing"}')
        tune.report({'score': float(found[self.metric]), 'epoch': runner.epoch})


def _same_data(cfg: Config) -> bool:
    """Whether validation and test read the same list or folder."""

    def place(field: str) -> Any:
        dataset = (cfg.get(field) or {}).get('dataset') or {}
        while isinstance(dataset.get('dataset'), Mapping):
            dataset = dataset['dataset']
        keys = ('type', 'ann_file', 'data_root', 'data_prefix', 'split', 'task')
        return {k: dataset.get(k) for k in keys if dataset.get(k)}

    return bool(place('test_dataloader')) and place('val_dataloader') == place('test_dataloader')


def check(cfg: Config, on_test: bool) -> None:
    """Refuse a config on which a search would choose by the test set, or cannot choose at all.

    Raises:
        ValueError: One line that says what to set.
    """
    if cfg.get('val_dataloader') is None or cfg.get('val_evaluator') is None:
        raise ValueError('the config has no val_dataloader or no val_evaluator: a search needs a validation part')
    if _same_data(cfg) and not on_test:
        raise ValueError('val_dataloader reads the test data, so the search would choose by the test set: set '
                         'val_dataloader.dataset to a validation part, or say --on-test')


def check_values(cfg: Config, config: str, space: Mapping[str, Range]) -> None:
    """Refuse a range with a value, an end for numbers, that no run can be built with.

    Raises:
        ValueError: Naming the range and what is wrong with the value.
    """
    for key, each in space.items():
        for value in each.tried():
            trial = copy.deepcopy(cfg)
            trial.merge_from_dict({key: value})
            try:
                check_config(trial, config)
                # What a run would refuse when it begins is refused here, before there are any.
                prepare(copy.deepcopy(trial))
                if key.startswith('model.'):
                    with on_meta():
                        build_model(trial, weights=False)
            except ValueError as error:
                raise ValueError(f'--space {key}={each}: {error}') from error


def train_one(params: Mapping[str, Any], config: str, options: Mapping[str, Any], metric: str, home: str) -> None:
    """One run of the search, inside a Ray worker: the config with ``params``; goes on if it was interrupted."""
    from ray import tune
    os.chdir(home)  # Ray begins elsewhere, and configs name data and weights from here
    cfg = load_config(config)
    cfg.merge_from_dict({**options, **params})
    apply_task(cfg, dict(options))
    cfg.work_dir = os.path.join(tune.get_context().get_trial_dir(), 'run')
    cfg.resume = os.path.isfile(os.path.join(cfg.work_dir, 'last_checkpoint'))
    runner = build_runner(cfg)
    runner.register_hook(ReportHook(metric))
    runner.train()


def _tune_space(space: Mapping[str, Range]) -> Dict[str, Any]:
    from ray import tune
    return {key: getattr(tune, each.kind)(*each.args) for key, each in space.items()}


def _tuner(space: Mapping[str, Range], trainable: Any, folder: Path, samples: int, epochs: int, seed: int) -> Any:
    """A new tuner, or that of an interrupted search in the same folder."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    if tune.Tuner.can_restore(str(folder)):
        return tune.Tuner.restore(str(folder), trainable=trainable, resume_unfinished=True, restart_errored=True)
    # Of three runs one goes on, after a ninth and after a third of the epochs.
    asha = ASHAScheduler(time_attr='epoch', max_t=epochs, grace_period=max(1, epochs // 9), reduction_factor=3)
    return tune.Tuner(
        trainable,
        param_space=_tune_space(space),
        tune_config=tune.TuneConfig(metric='score', mode='max', scheduler=asha, num_samples=samples,
                                    search_alg=tune.search.BasicVariantGenerator(random_state=seed)),
        run_config=tune.RunConfig(name=folder.name, storage_path=str(folder.parent), verbose=1))


def search(config: str, work_dir: str, texts: Sequence[str] = (), samples: int = 16, metric: str = 'accuracy/top1',
           options: Optional[Mapping[str, Any]] = None, gpus: float = 1., cpus: float = 1., seed: int = 0,
           on_test: bool = False, address: Optional[str] = None) -> List[Dict[str, Any]]:
    """Find good values for some entries of a config. The same call goes on where an interrupted one stopped.

    Args:
        config: Config file, or the name of a shipped one.
        work_dir: Folder of the search; receives ``best.py``, a config with the best values, and ``search.json``.
        texts: Ranges, see :func:`mmpetl.sweeps.space.parse_range`; none: the learning rate over three decades.
        samples: Runs.
        metric: Score to raise, as the validation prints it.
        options: Config options of every run.
        gpus: GPUs of a run, may be a fraction; 0 where there are none.
        cpus: CPU cores of a run.
        seed: Seed of the samples.
        on_test: Allow a validation part that is the test set.
        address: Address of a Ray cluster; None: this machine.

    Returns:
        One dict per run, best first: ``params``, ``score`` (None if it failed), ``epochs``.

    Raises:
        ValueError: If Ray Tune is not installed, or config and ranges do not fit.
    """
    cfg = load_config(config)
    merge_options(cfg, options)
    check_config(cfg, config)
    check_complete(cfg, config)
    check(cfg, on_test)
    if not cfg.train_cfg.get('max_epochs'):
        raise ValueError(f'{config}: a search counts epochs: give train_cfg a max_epochs')
    space, epochs = space_of(cfg, texts), int(cfg.train_cfg.max_epochs)
    check_values(cfg, config, space)
    try:
        import ray
        from ray import tune
    except ImportError:
        raise ValueError(_MISSING) from None
    folder = Path(os.path.abspath(work_dir)) / 'ray'
    # root: workers must import this package from a checkout, too
    started, root = not ray.is_initialized(), str(Path(__file__).resolve().parents[2])
    if started:
        path = os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))
        ray.init(address=address, include_dashboard=False, log_to_driver=False,
                 runtime_env=dict(env_vars=dict(PYTHONPATH=path)))
    try:
        resources = dict(cpu=cpus, **(dict(gpu=gpus) if ray.cluster_resources().get('GPU') and gpus else {}))
        one = tune.with_parameters(train_one, config=os.path.abspath(config) if os.path.isfile(config) else config,
                                   options=dict(options or {}), metric=metric, home=os.getcwd())
        results = _tuner(space, tune.with_resources(one, resources), folder, samples, epochs, seed).fit()
        rows = sorted(map(_row, results), key=lambda row: float('-inf') if row['score'] is None else row['score'])[::-1]
    finally:
        if started:
            ray.shutdown()
    _write(config, work_dir, rows, options or {}, metric)
    return rows


def _row(result: Any) -> Dict[str, Any]:
    """What a run reached: its best score and how many epochs ASHA let it train."""
    history = result.metrics_dataframe
    scores = [] if history is None or 'score' not in history else list(history['score'])
    return dict(params=dict(result.config), score=max(scores) if scores else None, epochs=len(scores),
                error=_last_line(str(result.error or '')))


def _last_line(text: str) -> str:
    """What a traceback ends with: the error's own line."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), '')


def _write(config: str, work_dir: str, rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any],
           metric: str) -> None:
    """``search.json``, and ``best.py`` with the best parameters if a run has a score."""
    write_json(os.path.join(work_dir, 'search.json'), dict(config=config, metric=metric, rows=list(rows)))
    if not rows or rows[0]['score'] is None:
        return
    cfg = load_config(config)
    cfg.merge_from_dict({**options, **rows[0]['params']})
    text = f'# Best of {len(rows)} runs, {metric} {rows[0]["score"]:.4f} on the validation part.\n{cfg.pretty_text}'
    atomic_write(os.path.join(work_dir, 'best.py'), lambda file: write_text(text, file))


def table(rows: Sequence[Mapping[str, Any]]) -> List[Tuple[str, str, str]]:
    """(score, epochs, parameters) of every run as texts, best first."""
    lines = []
    for row in rows:
        score = 'failed' if row['score'] is None else f'{row["score"]:.4f}'
        lines.append((score, str(row['epochs']), ', '.join(f'{k}={v!r}' for k, v in row['params'].items())))
    return lines
