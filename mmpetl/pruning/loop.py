# SPDX-License-Identifier: Apache-2.0
"""E2VPT's procedure: train, score the prompts, choose how many to prune, rewind, train again.

Han et al., https://arxiv.org/abs/2307.13770, section 3.3. Every training is an ordinary run of the config with what the
procedure found so far: ``kept`` of the method, and the values from which it begins. The published code takes 118 full
trainings for one data set, because it tries all pairs of ratios and redraws where the paper says rewind; here a cascade
with early stopping tries at most one ratio after another.
"""

import copy
import gc
import math
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import EMAHook, Hook
from torch import nn

from ..hooks.class_start import ClassStartHook
from ..hooks.loops import EpochTrainLoop
from ..registry import LOOPS
from ..sites import nearest, positive
from ..training.run import build_runner
from ..training.said import CommandHook, near
from ..training.tasks import find_dicts
from ..training.work_dir import Newest, contents, newest_checkpoint
from ..tuning import unwrap
from .scores import PromptScorer, find_prunable, mask_levels
from .state import Pair, PruningState, load_state, restore, save_state, store
from .timeline import draw

PHASES = ('train', 'score', 'prune', 'rewind', 'retrain')
REWINDS = ('init', 'reinit', 'keep')
#: What a scheduler counts in epochs.
_EPOCH_KEYS = ('begin', 'end', 'T_max', 'step_size', 'milestones')


def scale_schedule(schedulers: Any, ratio: float) -> Any:
    """Param-scheduler configs with every number of epochs multiplied by ``ratio``; numbers of iterations stay.

    Args:
        schedulers: A config or list of configs as in ``param_scheduler``, or None.
        ratio: Length of the short run over that of the full one.

    Returns:
        Configs of the same structure.
    """
    if isinstance(schedulers, (list, tuple)):
        return [scale_schedule(s, ratio) for s in schedulers]
    if schedulers is None or not schedulers.get('by_epoch', True):
        return schedulers

    def scaled(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [scaled(v) for v in value]
        return max(1, round(value * ratio)) if value else value  # a warm-up stays, a beginning at 0 stays at 0

    return {k: scaled(v) if k in _EPOCH_KEYS else v for k, v in schedulers.items()}


def _levels(name: str, count: Union[int, str], total: int, least: int, percents: Sequence[int]) -> List[int]:
    """How many tokens, or segments, to try to prune."""
    if count == 'search':
        return mask_levels(total, least, percents)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < total:
        raise ValueError(f"E2VPTLoop: {name} must be 'search' or a number to prune in 0..{total - 1}, got {count!r}")
    return [count]


def _validations(runner: Any) -> Dict[str, List[float]]:
    """The numbers of all validations of a run, and of those before it was resumed: metric -> values."""
    return {key.removeprefix('val/'): list(buffer.data[0]) for key, buffer in runner.message_hub.log_scalars.items()
            if key.startswith('val/') and key not in ('val/time', 'val/data_time')}


class _ValuesOnly(Hook):
    """Of a checkpoint that is resumed, the optimizer and the schedule belong to the training that wrote it."""

    def __init__(self) -> None:
        self.loaded = False

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        self.loaded = True
        for key in ('optimizer', 'param_schedulers'):
            checkpoint.pop(key, None)


@LOOPS.register_module()
class E2VPTLoop(EpochTrainLoop):
    """Train, score, prune, rewind and retrain in one command, or any of these phases alone.

    Progress, scores and starting values are kept under ``<work_dir>/pruning``, so that a run may be cut anywhere and go
    on with ``--resume``, and a later run in the same work dir may start with a later phase. Training 'train' has the
    work dir ``train`` below, 'retrain' this one, candidates of the search ``search/<tokens>-<segments>``; these write
    no checkpoint, and one that was cut starts anew. All trainings have the same random seed.

    Args:
        runner: The runner.
        dataloader: The training dataloader.
        max_epochs: Epochs of 'train' and of 'retrain'.
        phases: Those to run, in this order: 'train', 'score', 'prune', 'rewind', 'retrain'.
        tokens: Tokens to prune, or 'search'.
        segments: Segments to prune of each remaining token, or 'search'.
        percents: Ratios that the search tries, beside 0.
        min_tokens: Tokens that must remain.
        min_segments: Segments that must remain of each token.
        search_epochs: Epochs of a candidate, its schedule in proportion; None means ``max_epochs``.
        patience: Worse candidates in a row after which the search stops raising the ratio.
        metric: Name of the validation metric that decides; None takes the first.
        rule: 'greater' or 'less' is better.
        select: 'last' or 'best' validation of a candidate counts.
        rewind: Where 'retrain' and candidates of the search begin. 'init': at the stored values before 'train';
            'reinit': at new ones, by the next random seed (as the published code); 'keep': at the trained values, as
            'retrain' does without this phase.
        scorer: Options of :class:`mmpetl.pruning.scores.PromptScorer`.
        score_dataloader: Config of another dataloader to score on; None scores on the training data, each sample once.
        val_begin, val_interval, dynamic_intervals: As in MMEngine's ``EpochBasedTrainLoop``.

    Raises:
        ValueError: If an option does not fit, the model has no E2VPT, more is to be pruned than exists, a search has no
            validation, or a hook keeps a copy of the unpruned model.
    """

    def __init__(self,
                 runner: Any,
                 dataloader: Any,
                 max_epochs: int,
                 phases: Sequence[str] = PHASES,
                 tokens: Union[int, str] = 'search',
                 segments: Union[int, str] = 'search',
                 percents: Sequence[int] = tuple(range(10, 100, 10)),
                 min_tokens: int = 1,
                 min_segments: int = 4,
                 search_epochs: Optional[int] = None,
                 patience: int = 2,
                 metric: Optional[str] = None,
                 rule: str = 'greater',
                 select: str = 'last',
                 rewind: str = 'init',
                 scorer: Optional[Dict[str, Any]] = None,
                 score_dataloader: Optional[Dict[str, Any]] = None,
                 val_begin: int = 1,
                 val_interval: int = 1,
                 dynamic_intervals: Optional[List[Tuple[int, int]]] = None) -> None:
        super().__init__(runner, dataloader, max_epochs, val_begin, val_interval, dynamic_intervals)
        self.validation = dict(val_begin=val_begin, val_interval=val_interval, dynamic_intervals=dynamic_intervals)
        self.phases, self.rewind, self.metric, self.select = list(phases), rewind, metric, select
        self.sign, self.score_dataloader = 1 if rule == 'greater' else -1, score_dataloader
        self.search_epochs = positive(max_epochs if search_epochs is None else search_epochs, 'search_epochs',
                                      'E2VPTLoop')
        self.patience = positive(patience, 'patience', 'E2VPTLoop')
        self.scorer = PromptScorer(**(scorer or {}))
        for name, value, known in (*(('phases', p, PHASES) for p in self.phases), ('rewind', rewind, REWINDS),
                                   ('rule', rule, ('greater', 'less')), ('select', select, ('last', 'best'))):
            if value not in known:
                raise ValueError(f'E2VPTLoop: unknown {name} {value!r}' + nearest(value, known))
        if self.phases != [p for p in PHASES if p in self.phases] or not self.phases:
            raise ValueError(f'E2VPTLoop: phases must be some of {", ".join(PHASES)}, in this order, got {self.phases}')
        method = self.method
        self.levels = [_levels('tokens', tokens, method.num_tokens, min_tokens, percents),
                       _levels('segments', segments, method.segments, min(min_segments, method.segments), percents)]
        self._check_config('prune' in self.phases and 'search' in (tokens, segments))
        self.state = PruningState(method.num_tokens, method.segments)
        self.folder = os.path.join(runner.work_dir, 'pruning')
        self.resuming, self._checkpoint = bool(runner.cfg.get('resume')), _ValuesOnly()
        runner.register_hook(self._checkpoint)

    def _check_config(self, search: bool) -> None:
        cfg = self.runner.cfg
        objects = [key for key in ('model', 'train_dataloader', 'optim_wrapper') if not isinstance(cfg.get(key), dict)]
        if objects:
            raise ValueError(f'E2VPTLoop trains several runs of the config, so {objects[0]} must be a dict in it')
        if search and not cfg.get('val_dataloader'):
            raise ValueError(
                'E2VPTLoop: the search needs validation data: set val_dataloader, val_cfg and val_evaluator, '
                'or give numbers for tokens and segments')
        if any(isinstance(hook, EMAHook) for hook in self.runner.hooks):
            raise ValueError('E2VPTLoop: EMAHook keeps a copy of the unpruned model; remove it from custom_hooks')
        if any(isinstance(hook, ClassStartHook) for hook in self.runner.hooks):
            raise ValueError('E2VPTLoop: its trainings begin at values of their own, not at class tokens; remove '
                             'ClassStartHook from custom_hooks')

    @property
    def model(self) -> nn.Module:
        """The unpruned model, on which prompts are scored and starting values made; at the end, the one trained
        last."""
        return unwrap(self.runner.model)

    @property
    def method(self) -> Any:
        """The method that is pruned."""
        return find_prunable(self.model)[2]

    # -- the phases ---------------------------------------------------------------------------------------------------

    def run(self) -> nn.Module:
        """Run the phases that are not done yet."""
        self._begin()
        left = [phase for phase in self.phases if phase not in self.state.done]
        self._tell(left)
        for phase in left:
            self.runner.logger.info(f'E2VPT: phase {phase}{self._epochs(phase) if phase != "prune" else ""}')
            try:
                getattr(self, f'_phase_{phase}')()
            except KeyboardInterrupt:
                raise KeyboardInterrupt(self._kept(phase)) from None
            self.state.done.append(phase)
            save_state(self.folder, self.state)
            if phase in ('prune', 'retrain') and is_main_process():
                draw(self.state, self._path('timeline.png'))
        return self.runner.model

    @property
    def _command_hooks(self) -> List[Hook]:
        return [hook for hook in self.runner.hooks if isinstance(hook, CommandHook)]

    def _tell(self, left: List[str]) -> None:
        """Say what there is to do, as an ordinary run does."""
        for hook in self._command_hooks:
            hook.before_train(self.runner)
        info = self.runner.logger.info
        if not left:
            info(f'{"finished":<10}all phases ({", ".join(self.phases)}); to train longer begin anew by --overwrite '
                 f'--set train_cfg.max_epochs=N, N above {self.max_epochs}')
        elif len(left) < len(self.phases):
            info(f'E2VPT: done already: {", ".join(phase for phase in self.phases if phase not in left)}')
        if left and self._parts():
            words = [f'{phase} {epochs}' if count == 1 else f'{phase} at most {count} x {epochs}'
                     for phase, (count, epochs) in self._parts().items()]
            info(f'{"epochs":<10}{", ".join(words)}; {self._all_epochs()} in all')

    def _parts(self) -> Dict[str, Tuple[int, int]]:
        """Phase -> how often it trains, at most, and epochs each time."""
        counts = [len(levels) for levels in self.levels if len(levels) > 1]
        search = sum(counts) - (len(counts) == 2)  # the search of segments begins with a candidate of that of tokens
        parts = dict(train=(1, self.max_epochs), prune=(search, self.search_epochs), retrain=(1, self.max_epochs))
        return {phase: part for phase, part in parts.items() if phase in self.phases and part[0]}

    def _all_epochs(self) -> str:
        parts = self._parts()
        return ('at most ' if 'prune' in parts else '') + str(sum(count * epochs for count, epochs in parts.values()))

    def _epochs(self, phase: str) -> str:
        """Which of all epochs the next training of a phase is."""
        _, epochs = self._parts().get(phase, (0, 0))
        first = 1 + self.search_epochs * len(self.state.runs) * ('prune' in self.phases)
        first += self.max_epochs * (phase != 'train' and 'train' in self.phases)
        which = f'epoch {first}' if epochs == 1 else f'epochs {first} to {first + epochs - 1}'
        return f', {which} of {self._all_epochs()}' if epochs else ''

    def _kept(self, phase: str) -> str:
        """What Ctrl-C leaves."""
        kept = f'{len(self.state.runs)} candidate(s) are' if phase == 'prune' else 'what the phases before made is'
        if phase in ('train', 'retrain') and (found := self._newest(phase)).path:
            kept = f'{near(found.path)}, {found.where}, is'
        return f'in phase {phase} of E2VPT; {kept} kept; the same command with --resume goes on'

    def _newest(self, run: str) -> Newest:
        """The newest checkpoint of a training; none of those in folders below."""
        folder = os.path.abspath(self._folders(run)[1])
        found = newest_checkpoint(folder)
        return found if found.path and os.path.dirname(found.path) == folder else Newest()

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _begin(self) -> None:
        """Find out where the work stands, and store the initial values."""
        stored = load_state(self.folder)
        barrier()  # all have read what the main process is about to change
        if stored is not None and (self.resuming or self.phases[0] != 'train'):
            found, here = (stored.num_tokens, stored.segments), (self.state.num_tokens, self.state.segments)
            if found != here:
                raise ValueError(
                    f"E2VPTLoop: {self._path('state.json')} is of a run with (tokens, segments) = {found}, "
                    f'the config has {here}: use another work dir or remove it')
            self.state = stored
            if not self.resuming:
                self.state.forget(PHASES[PHASES.index(self.phases[0]):])
        if not self.resuming:
            self._remove_checkpoints()
        # the initial values were stored before the state
        begun = self.resuming and stored is not None
        if self.resuming and self._checkpoint.loaded and not begun:
            raise ValueError(f"E2VPTLoop: the checkpoint belongs to no run of this loop with "
                             f"{self._path('state.json')}; start without --resume")
        if 'train' in self.phases and not begun:
            self._store('init')
        save_state(self.folder, self.state)

    def _store(self, name: str) -> None:
        """Store the values of the model, which must not be pruned."""
        if len(self.method.kept) < self.method.num_tokens:
            raise ValueError('E2VPTLoop: the model is pruned already; load weights that are not')
        store(self.model, self._path(f'{name}.safetensors'))

    def _remove_checkpoints(self) -> None:
        """Remove what trainings before left, lest a resumed run takes it for its own."""
        for run in {'train', 'retrain'} & set(self.phases):
            folder = self._folders(run)[1]
            for name in contents(folder) if is_main_process() else ():
                if name.endswith('.pth') and os.path.isfile(path := os.path.join(folder, name)) and os.sep not in name:
                    os.unlink(path)

    def _phase_train(self) -> None:
        store(self._fit('train')[0], self._path('trained.safetensors'))

    def _phase_score(self) -> None:
        if 'train' in self.state.done:
            restore(self.model, self._path('trained.safetensors'))
        elif self._checkpoint.loaded:
            self._store('trained')
        else:
            raise ValueError('E2VPTLoop: phase score needs a trained model: run phase train before, or set load_from')
        self.model.to(get_device())  # every training moves it to the CPU
        scores = self.scorer.score(self.model, self._score_loader())
        self.state.scores = dict(
            tokens=scores.tokens.tolist(), segments=scores.segments.tolist(), samples=scores.samples)

    def _phase_prune(self) -> None:
        if self.levels != [[0], [0]]:
            self.state.masks((0, 1))  # refuses before the first candidate where there are no scores
        pair = [0, 0]
        for position, levels in enumerate(self.levels):
            best, worse = -math.inf, 0
            for level in levels:
                if len(levels) == 1:
                    pair[position] = level
                    break
                value = self._candidate((level, 0) if position == 0 else (pair[0], level)) * self.sign
                # Of equal candidates the smaller model wins; a NaN never does.
                if value >= best:
                    best, pair[position], worse = value, level, 0
                else:
                    worse += 1
                if worse >= self.patience:
                    break
        self.state.chosen, self.state.kept = pair, self.state.kept_of(pair)
        self.runner.logger.info(
            f'E2VPT: prune {pair[0]} tokens and {pair[1]} segments of each; kept: {self.state.kept}')

    def _phase_rewind(self) -> None:
        self._chosen()  # where 'retrain' begins stands in its config

    def _phase_retrain(self) -> None:
        model, _ = self._fit('retrain', self._chosen())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.runner.logger.info(
            f'E2VPT: {trained} trainable parameters, {len(find_prunable(model)[2].kept)} of {self.state.num_tokens} '
            'prompts')

    def _chosen(self) -> Pair:
        if self.state.chosen is None:
            raise ValueError("E2VPTLoop: nothing was chosen yet: run phase 'prune' before 'rewind' and 'retrain'")
        return self.state.chosen[0], self.state.chosen[1]

    # -- parts of the phases ------------------------------------------------------------------------------------------

    def _candidate(self, pair: Pair) -> float:
        """Validation value of a pair, found now or before."""
        value = self.state.value(pair)
        if value is None:
            what = f'E2VPT: without {pair[0]} tokens and {pair[1]} segments'
            self.runner.logger.info(f'{what}{self._epochs("prune")}')
            values = self._fit(f'{pair[0]}-{pair[1]}', pair)[1]
            value = values[-1] if self.select == 'last' else self.sign * max(self.sign * v for v in values)
            self.state.add_run(pair, value)
            save_state(self.folder, self.state)
            self.runner.logger.info(f'{what}: {value:.4f}')
        return value

    def _score_loader(self) -> Any:
        cfg = copy.deepcopy(self.score_dataloader or self.runner.cfg.train_dataloader)
        cfg.pop('batch_sampler', None)
        # Rounding up would count some samples twice under several processes.
        cfg.update(sampler=dict(type='mmengine.DefaultSampler', shuffle=False, round_up=False), drop_last=False,
                   persistent_workers=False)
        if self.score_dataloader is None:
            cfg['dataset'] = self.dataloader.dataset
        return self.runner.build_dataloader(cfg)

    # -- one training -------------------------------------------------------------------------------------------------

    def _fit(self, run: str, pair: Optional[Pair] = None) -> Tuple[nn.Module, List[float]]:
        """An ordinary training run: 'train', 'retrain', or a candidate of the search; its bare model and validation
        values."""
        self.model.cpu()  # a device need not hold two models
        if get_device() != 'cpu':
            gc.collect()  # the run before holds a model, too
        runner = build_runner(self._config(run, pair))
        for hook in self._command_hooks:
            runner.register_hook(hook)
        runner.train()
        found = _validations(runner)
        last = {key: values[-1] for key, values in found.items()}
        name = self.metric or next(iter(last), '')
        if name not in last and runner.val_loop:
            raise ValueError(f'E2VPTLoop: validation gives no metric {name!r}' + nearest(name, last))
        if run in ('train', 'retrain'):
            ordered = sorted(last, key=lambda key: key != name)
            self.state.results[run] = {key: last[key] for key in ordered if math.isfinite(last[key])}
            self._epoch, self._iter = runner.epoch, runner.iter  # hooks of the outer run ask this loop for them
        if run == self.phases[-1]:
            self.runner.model = runner.model
        return unwrap(runner.model), found.get(name, [])

    def _folders(self, run: str) -> Tuple[str, str, Optional[str]]:
        """Work dir of a run, the folder of its checkpoints, and the option ``out_dir`` that gives it this folder."""
        top = self.runner.work_dir
        work_dir = {'train': os.path.join(top, 'train'), 'retrain': top}.get(run, os.path.join(top, 'search', run))
        out_dir = ((self.runner.cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('out_dir')
        if out_dir and run != 'retrain':
            out_dir = os.path.join(out_dir, os.path.basename(top))
        return work_dir, os.path.join(out_dir, os.path.basename(work_dir)) if out_dir else work_dir, out_dir

    def _config(self, run: str, pair: Optional[Pair]) -> Config:
        """The config of a run; it stands beside the run's logs and repeats the run by itself."""
        top, search = self.runner.cfg, run not in ('train', 'retrain')
        cfg = top.to_dict()
        name = f'{top.get("experiment_name") or Path(top.filename or "pruning").stem}_{run}'
        work_dir, _, out_dir = self._folders(run)
        epochs = self.search_epochs if search else self.max_epochs
        how = 'init' if run == 'train' else self.rewind if search or 'rewind' in self.state.done else 'keep'
        begin = dict(init=self._path('init.safetensors'), keep=self._path('trained.safetensors')).get(how)
        custom, default = list(cfg.get('custom_hooks') or ()), dict(cfg.get('default_hooks') or {})
        cfg.update(
            work_dir=work_dir,
            experiment_name=name,
            train_cfg=dict(self.validation, type='mmpetl.EpochTrainLoop', max_epochs=epochs,
                           val_begin=min(self.val_begin, epochs)),  # a short one is validated, too
            randomness=dict(cfg.get('randomness') or {}, seed=self.runner.seed + (how == 'reinit')),
            custom_hooks=[*custom, dict(type='mmpetl.StartHook', path=begin)],
            default_hooks=default,
            param_scheduler=scale_schedule(cfg.get('param_scheduler'), epochs / self.max_epochs),
            **self._origin(run))
        if pair is not None:
            for method in find_dicts(cfg['model'], 'E2VPT'):
                method['kept'] = self.state.kept_of(pair)
        if search:
            default['checkpoint'] = None
            cfg['custom_hooks'] = [h for h in cfg['custom_hooks'] if not str(h.get('type')).endswith('AdapterHook')]
            if self.select == 'last':
                cfg['train_cfg'].update(val_begin=1, val_interval=epochs, dynamic_intervals=None)
        elif out_dir:
            default['checkpoint']['out_dir'] = out_dir
        # formatting takes longer than building the run
        return Config(cfg, cfg_text=top.text or name, filename=f'{name}.py', format_python_code=False)

    def _origin(self, run: str) -> Dict[str, Any]:
        """Whether a run goes on, and from which of its checkpoints."""
        given = self.runner.cfg.get('load_from')
        if not self.resuming:
            return dict(resume=False, load_from=given)
        folder = os.path.abspath(self._folders(run)[1])
        of_it = given and os.path.dirname(os.path.abspath(given)) == folder
        path = given if of_it else self._newest(run).path
        return dict(resume=path is not None, load_from=path)
