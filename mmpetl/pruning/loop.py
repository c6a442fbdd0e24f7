"""E2VPT's procedure as a training loop: train, score the prompts, choose how many to prune, rewind, train again.

Han et al., https://arxiv.org/abs/2307.13770, section 3.3. The published code takes 118 full trainings for one data set,
because it tries all pairs of ratios and redraws where the paper says rewind; here a cascade with early stopping tries
at most one ratio after another.
"""

import copy
import gc
import math
from collections import deque
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, IterTimerHook, RuntimeInfoHook
from mmengine.model import is_model_wrapper
from mmengine.runner.utils import set_random_seed
from torch import nn

from ..hooks.adapter import AdapterHook
from ..hooks.loops import EpochTrainLoop
from ..registry import LOOPS
from ..sites import nearest, positive
from ..tuning import unwrap
from .scores import PromptScorer, find_prunable, mask_levels
from .state import PruningFiles, PruningState, restore, take
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
        return [scaled(v)
                for v in value] if isinstance(value,
                                              (list, tuple)) else max(1, round(value * ratio)) if value else value

    return {k: scaled(v) if k in _EPOCH_KEYS else v for k, v in schedulers.items()}


@LOOPS.register_module()
class E2VPTLoop(EpochTrainLoop):
    """Train, score, prune, rewind and retrain in one run, or any of these phases alone.

    Everything is kept under ``<work_dir>/pruning``, so that a run may be cut anywhere and go on with ``--resume``, and
    a later run in the same work dir may start with a later phase. Checkpoints of phase 'train' go to the folder
    ``train`` beside those of 'retrain'; the search writes none. A candidate that was cut starts anew, with the same
    random numbers.

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
        rewind: 'init' returns prompts and head to their stored values before 'train'; 'reinit' draws new ones (as the
            published code); 'keep' goes on from the trained values, as leaving out the phase does for 'retrain'.
            Candidates of the search start so too.
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
        self._loader_cfg = dataloader if score_dataloader is None else score_dataloader
        self._own_scores = score_dataloader is not None
        super().__init__(runner, dataloader, max_epochs, val_begin, val_interval, dynamic_intervals)
        self._full_epochs = self._max_epochs
        self.phases, self.rewind = list(phases), rewind
        self.metric, self.sign, self.select = metric, 1 if rule == 'greater' else -1, select
        self.search_epochs = self._full_epochs if search_epochs is None else positive(
            search_epochs, 'search_epochs', 'E2VPTLoop')
        self.patience = positive(patience, 'patience', 'E2VPTLoop')
        self.scorer = PromptScorer(**(scorer or {}))
        _, _, method = find_prunable(runner.model)
        for name, value, known in (*(('phases', p, PHASES) for p in self.phases), ('rewind', rewind, REWINDS),
                                   ('rule', rule, ('greater', 'less')), ('select', select, ('last', 'best'))):
            if value not in known:
                raise ValueError(f'E2VPTLoop: unknown {name} {value!r}' + nearest(value, known))
        if self.phases != [p for p in PHASES if p in self.phases] or not self.phases:
            raise ValueError(f'E2VPTLoop: phases must be some of {", ".join(PHASES)}, in this order, got {self.phases}')
        self.levels: List[List[int]] = []
        for name, count, total, least in (('tokens', tokens, method.num_tokens, min_tokens),
                                          ('segments', segments, method.segments, min(min_segments, method.segments))):
            if count == 'search':
                self.levels.append(mask_levels(total, least, percents))
            elif isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < total:
                raise ValueError(
                    f"E2VPTLoop: {name} must be 'search' or a number to prune in 0..{total - 1}, got {count!r}")
            else:
                self.levels.append([count])
        self._check_runner('prune' in self.phases and 'search' in (tokens, segments))
        self._optim_cfg, self._scheduler_cfg = copy.deepcopy(runner.optim_wrapper), copy.deepcopy(
            runner.param_schedulers)
        self.state = PruningState(method.num_tokens, method.segments)
        self.files = PruningFiles(f'{runner.work_dir}/pruning')
        self._resumed_run: Optional[str] = None

    def _check_runner(self, search: bool) -> None:
        runner = self.runner
        if not isinstance(runner.optim_wrapper, dict):
            raise ValueError(
                'E2VPTLoop builds the optimizer anew for every training, so optim_wrapper must be a config')
        if search and runner._val_loop is None:
            raise ValueError(
                'E2VPTLoop: the search needs validation data: set val_dataloader, val_cfg and val_evaluator, '
                'or give numbers for tokens and segments')
        copying = [type(h).__name__ for h in runner.hooks if isinstance(h, EMAHook)]
        if copying:
            raise ValueError(f'E2VPTLoop: {copying[0]} keeps a copy of the unpruned model; remove it from custom_hooks')
        if not self._own_scores and 'score' in self.phases and not isinstance(self._loader_cfg, dict):
            raise ValueError('E2VPTLoop: give score_dataloader as a config, because train_dataloader is none')

    @property
    def model(self) -> nn.Module:
        """The bare model."""
        return unwrap(self.runner.model)

    @property
    def method(self) -> Any:
        """The method that is pruned."""
        return find_prunable(self.model)[2]

    # -- the phases ---------------------------------------------------------------------------------------------------

    def run(self) -> nn.Module:
        """Run the phases that are not done yet."""
        self.runner.call_hook('before_train')
        self._out_dirs = {hook: hook.out_dir for hook in self.runner.hooks if isinstance(hook, CheckpointHook)}
        self._begin()
        for phase in self.phases:
            if phase in self.state.done:
                self.runner.logger.info(f'E2VPT: phase {phase} is done already')
                continue
            self.runner.logger.info(f'E2VPT: phase {phase}')
            getattr(self, f'_phase_{phase}')()
            self.state.done.append(phase)
            self.files.save(self.state)
            if phase in ('prune', 'retrain'):
                self._draw()
        self.runner.call_hook('after_train')
        return self.runner.model

    def _draw(self) -> None:
        if is_main_process():
            draw(self.state, self.files.path('timeline.png'))

    def _begin(self) -> None:
        """Find out where the work stands, and store the initial values."""
        stored = self.files.load()
        if stored is not None and (self.runner._resume or self.phases[0] != 'train'):
            found, here = (stored.num_tokens, stored.segments), (self.state.num_tokens, self.state.segments)
            if found != here:
                raise ValueError(
                    f"E2VPTLoop: {self.files.path('state.json')} is of a run with (tokens, segments) = {found}, "
                    f'the config has {here}: use another work dir or remove it')
            self.state = stored
            if not self.runner._resume:
                self.state.forget(list(PHASES[PHASES.index(self.phases[0]):]))
        if self.runner._resume and self._epoch:
            self._resumed_run = self.runner.message_hub.get_info('e2vpt_run')
            if stored is None or self._resumed_run is None:
                raise ValueError(
                    f"E2VPTLoop: the checkpoint belongs to no run of this loop with {self.files.path('state.json')}; "
                    'start without --resume')
        elif 'train' in self.phases and 'train' not in self.state.done:
            self._check_unpruned()
            if stored is not None and self.runner._resume and self.files.get('init') is not None:
                self._restore('init')  # cut before the first checkpoint
            else:
                self.files.put('init', take(self.model))
        self.files.save(self.state)

    def _check_unpruned(self) -> None:
        if len(self.method.kept) < self.method.num_tokens:
            raise ValueError('E2VPTLoop: the model is pruned already; load weights that are not')

    def _phase_train(self) -> None:
        self._fit('train', self._full_epochs)
        self.files.put('trained', take(self.model))

    def _phase_score(self) -> None:
        if 'train' in self.state.done:
            self._restore('trained')
        elif self.runner._load_from is not None:
            self._check_unpruned()
            self.files.put('trained', take(self.model))
        else:
            raise ValueError('E2VPTLoop: phase score needs a trained model: run phase train before, or set load_from')
        self.state.set_scores(self.scorer.score(self.model, self._score_loader()))

    def _phase_prune(self) -> None:
        if self.levels != [[0], [0]]:
            self.state.prompt_scores()  # refuses before the first candidate where there are none
        pair = [0, 0]
        for position, levels in enumerate(self.levels):
            best: Optional[float] = None
            worse = 0
            for level in levels:
                trial = (level, 0) if position == 0 else (pair[0], level)
                if len(levels) == 1:
                    pair[position] = level
                    break
                value = self._candidate(trial) * self.sign
                # Of equal candidates the smaller model wins; a NaN never does.
                if best is None or math.isnan(best) or value >= best:
                    best, pair[position], worse = value, level, 0
                else:
                    worse += 1
                if worse >= self.patience:
                    break
        self.state.choose((pair[0], pair[1]))
        self.runner.logger.info(
            f'E2VPT: prune {pair[0]} tokens and {pair[1]} segments of each; kept: {self.state.kept}')

    def _phase_rewind(self) -> None:
        self._rewind(self._chosen(), self.rewind)
        self.files.put('rewound', take(self.model))

    def _phase_retrain(self) -> None:
        if self._resumed_run != 'retrain':
            if 'rewind' in self.state.done:
                self._restore('rewound')
            else:
                self._rewind(self._chosen(), 'keep')
        self._freeze_masks()
        self._fit('retrain', self._full_epochs)
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.runner.logger.info(
            f'E2VPT: {trained} trainable parameters, {len(self.method.kept)} of {self.method.num_tokens} prompts')

    def _chosen(self) -> Tuple[int, int]:
        if self.state.chosen is None:
            raise ValueError("E2VPTLoop: nothing was chosen yet: run phase 'prune' before 'rewind' and 'retrain'")
        return self.state.chosen[0], self.state.chosen[1]

    # -- parts of the phases ------------------------------------------------------------------------------------------

    def _candidate(self, pair: Tuple[int, int]) -> float:
        """Validation value of a pair, found now or before."""
        value = self.state.value(pair)
        if value is None:
            self._rewind(pair, self.rewind)
            with self._without_checkpoints():
                values = self._fit(f'prune {pair[0]} {pair[1]}', self.search_epochs, only_last=self.select == 'last')
            better = max if self.sign > 0 else min
            value = values[-1] if self.select == 'last' else better(values)
            self.state.add_run(pair, value)
            self.files.save(self.state)
            self.runner.logger.info(f'E2VPT: without {pair[0]} tokens and {pair[1]} segments: {value:.4f}')
        return value

    def _rewind(self, pair: Tuple[int, int], how: str) -> None:
        """The model at its rewound values, pruned by ``pair``."""
        self._seed()
        self._restore('trained' if how == 'keep' else 'init')
        if how == 'reinit':
            redraw(self.model)
        self.method.prune(*self.state.masks(pair))
        self.model.backbone.petl.refresh()

    def _restore(self, name: str) -> None:
        snapshot = self.files.get(name)
        if snapshot is None:
            raise ValueError(
                f'E2VPTLoop: {self.files.path(name)}.safetensors is missing: run phase train first in this work dir' +
                (", or choose rewind='keep'" if name == 'init' else ''))
        self._unwrap()
        restore(self.model, snapshot)

    def _freeze_masks(self) -> None:
        """Masks that a method trains (the published variant) stay as they are once pruning is decided."""
        self.method.prune(self.method.token_mask.detach().bool(), self.method.segment_mask.detach().bool())

    def _seed(self) -> None:
        """The same random numbers for every training, so candidates differ by what was pruned only."""
        set_random_seed(self.runner.seed, deterministic=self.runner.deterministic)

    def _score_loader(self) -> Any:
        cfg = copy.deepcopy({k: v for k, v in self._loader_cfg.items() if k not in ('dataset', 'batch_sampler')})
        # Rounding up would count some samples twice under several processes.
        cfg.update(
            sampler=dict(type='mmengine.DefaultSampler', shuffle=False, round_up=False),
            drop_last=False,
            persistent_workers=False)
        cfg['dataset'] = self._loader_cfg['dataset'] if self._own_scores else self.dataloader.dataset
        return self.runner.build_dataloader(cfg)

    # -- one training -------------------------------------------------------------------------------------------------

    def _fit(self, run: str, epochs: int, only_last: bool = False) -> List[float]:
        """Train from epoch 0, or from where the resumed checkpoint of the same run stands; returns the validation
        values."""
        self._max_epochs, self._max_iters = epochs, epochs * len(self.dataloader)
        resumed = self._resumed_run == run
        fresh = run == 'train' and not self.runner._resume
        self._resumed_run, self.stop_training = None, False
        self._set_folders(run, resumed)
        if not resumed:
            self._epoch = self._iter = 0
        if not fresh:
            self._renew(resumed)
        self.runner.message_hub.update_info('e2vpt_run', run)
        for hook in self.runner.hooks:
            if isinstance(hook, (IterTimerHook, RuntimeInfoHook)):
                hook.before_train(self.runner)
            elif isinstance(hook, EarlyStoppingHook) and not resumed:
                hook.wait_count, hook.best_score = 0, -math.inf if hook.rule == 'greater' else math.inf
        values: List[float] = []
        if resumed and self.resume_here() and self._validation_is_due(only_last):
            values.append(self._validate(run))
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            if self._validation_is_due(only_last):
                values.append(self._validate(run))
        return values

    def _validation_is_due(self, only_last: bool) -> bool:
        self._decide_current_val_interval()
        last = self._epoch == self._max_epochs or self.stop_training
        due = self._epoch >= self.val_begin and self._epoch % self.val_interval == 0 and not only_last
        return self.runner.val_loop is not None and (last or due)

    def _validate(self, run: str) -> float:
        metrics = self.runner.val_loop.run()
        name = self.metric or next(iter(metrics), 'none')
        if name not in metrics:
            raise ValueError(f'E2VPTLoop: validation gives no metric {name!r}' + nearest(name, metrics))
        if run in ('train', 'retrain'):
            ordered = [name, *(k for k in metrics if k != name)]
            self.state.results[run] = {k: float(metrics[k]) for k in ordered if math.isfinite(metrics[k])}
        return float(metrics[name])

    def _renew(self, resumed: bool) -> None:
        """A wrapper, and unless resumed an optimizer and schedulers, that know the present parameters."""
        runner = self.runner
        self._unwrap()
        if runner.distributed:
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), runner.model)
            runner._maybe_compile('train_step')
        if resumed:
            return
        self._seed()
        runner.optim_wrapper = runner.build_optim_wrapper(copy.deepcopy(self._optim_cfg))
        schedule = copy.deepcopy(self._scheduler_cfg)
        if self._max_epochs != self._full_epochs:
            schedule = scale_schedule(schedule, self._max_epochs / self._full_epochs)
        # The rate is scaled before schedulers are built, which remember it; the runner refuses the other order.
        runner.param_schedulers = schedule if schedule is None or isinstance(schedule, list) else [schedule]
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        if schedule is not None:
            runner.param_schedulers = runner.build_param_scheduler(schedule)
        runner.optim_wrapper.initialize_count_status(runner.model, self._iter, self._max_iters)

    def _unwrap(self) -> None:
        """Drop a data-parallel wrapper: its reducer knows the old shapes, and its hooks live as long as it does."""
        if is_model_wrapper(self.runner.model):
            self.runner.model = self.runner.model.module
            gc.collect()

    def _set_folders(self, run: str, resumed: bool) -> None:
        """Checkpoints of 'train' go beside those of 'retrain', and none of one run is taken for the best of another."""
        info = self.runner.message_hub.runtime_info
        if not resumed:
            for key in [
                    k for k in info if k.startswith(('best_score', 'best_ckpt')) or k in ('keep_ckpt_ids', 'last_ckpt')
            ]:
                info.pop(key)
        for hook, folder in self._out_dirs.items():
            hook.out_dir = hook.file_backend.join_path(folder, 'train') if run == 'train' else folder
            if not resumed:
                hook.last_ckpt = None
                hook.keep_ckpt_ids = deque(maxlen=max(hook.max_keep_ckpts, 0) or None)
                if hasattr(hook, 'best_ckpt_path'):
                    hook.best_ckpt_path = None
                if hasattr(hook, 'best_ckpt_path_dict'):
                    hook.best_ckpt_path_dict = dict.fromkeys(hook.key_indicators)

    @contextmanager
    def _without_checkpoints(self) -> Iterator[None]:
        hooks = self.runner._hooks
        self.runner._hooks = [h for h in hooks if not isinstance(h, (CheckpointHook, AdapterHook))]
        try:
            yield
        finally:
            self.runner._hooks = hooks


@torch.no_grad()
def redraw(model: nn.Module) -> None:
    """Draw the methods' and the head's initial values anew; the trunk stays as it is.

    Args:
        model: A model with ``backbone.petl``.
    """
    for method in model.backbone.petl.values():
        method.reset_parameters()
    for name, child in model.named_children():
        if name not in ('backbone', 'data_preprocessor'):
            for module in child.modules():
                if hasattr(module, '_is_init'):
                    module._is_init = False
            if hasattr(child, 'init_weights'):
                child.init_weights()
