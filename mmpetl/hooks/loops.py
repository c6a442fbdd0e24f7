# SPDX-License-Identifier: Apache-2.0
"""MMEngine's training loops, for runs that go on exactly where they were cut, also inside an epoch."""

import itertools
from typing import Any, Dict, Iterator, List, Optional, Tuple

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

from ..registry import LOOPS
from .checkpoint import CheckpointHook, give_back_gradients
from .random_state import begin_draws, random_state, seed_draws, set_random_state


def check_length(loader: DataLoader, planned: int, key: str) -> None:
    """Refuse a run that would not train.

    Raises:
        ValueError: If there is nothing to do, with the keys that say so.
    """
    if planned <= 0:
        raise ValueError(f'nothing would train: {key}={planned}; set it to 1 or more')
    if len(loader) == 0:
        samples, size = len(loader.dataset), loader.batch_size  # type: ignore[arg-type]
        mend = 'drop_last=True leaves no batch: lower the batch size or set train_dataloader.drop_last=False'
        raise ValueError(f'nothing would train: train_dataloader has {samples} sample(s), batch_size={size}, and '
                         f'{mend if samples else "so there is no batch: check its dataset"}')


class _Exact:
    """What both loops share: samples with seeds of their own, and the state that a checkpoint brought along."""

    runner: Any
    dataloader: DataLoader
    #: Random states of all processes at the beginning of the epoch, before the sampler drew its order.
    epoch_states: Optional[List[Any]] = None
    _resumed: Optional[Dict[str, Any]] = None

    @staticmethod
    def _seed_draws(loader: DataLoader, runner: Any) -> None:
        why = seed_draws(loader, runner.seed)
        if why:
            runner.logger.info(f'Augmentation is not repeated exactly by a resumed run: {why}')

    def take_up(self) -> Dict[str, Any]:
        """What the checkpoint brought along that this run resumed; {} in a run that begins, or when it was taken."""
        hook = next((h for h in self.runner.hooks if isinstance(h, CheckpointHook)), None)
        if hook is None or not hook.resumed:
            return {}
        state, hook.resumed = hook.resumed, {}
        if not state['found']:
            self.runner.logger.warning('The checkpoint holds no random states: the run goes on, but not bit by bit')
        elif len(state['random']) != get_world_size():
            self.runner.logger.warning(f'The checkpoint is of {len(state["random"])} process(es), this run has '
                                       f'{get_world_size()}: it goes on, but not bit by bit')
            state.update(random=None, epoch_random=None)
        give_back_gradients(self.runner.model, state.get('gradients') or {})
        return state

    def tell_finished(self, unit: str, done: int, last: int) -> None:
        """Say of a run that was resumed that it has trained for as long as it should."""
        if done >= last:
            self.runner.logger.info(
                f'{"finished":<10}at {unit} {done} of {last}; to train longer add --set train_cfg.max_{unit}s=N, '
                f'N above {last}')

    @staticmethod
    def set_states(states: Optional[List[Any]]) -> None:
        """Give every process its random states."""
        if states:
            set_random_state(states[get_rank()])


def _gathered() -> List[Any]:
    return all_gather_object(random_state()) if get_world_size() > 1 else [random_state()]


@LOOPS.register_module()
class EpochTrainLoop(_Exact, EpochBasedTrainLoop):
    """MMEngine's ``EpochBasedTrainLoop``, with the same arguments, that resumes exactly.

    A run that was cut inside an epoch goes on with the next batch of that epoch; one that was cut before or in its
    validation validates first.

    Raises:
        ValueError: If there is nothing to train.
    """
    _iter: int

    def __init__(self, runner: Any, dataloader: Any, max_epochs: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(runner, dataloader, max_epochs, *args, **kwargs)
        check_length(self.dataloader, self._max_epochs, 'train_cfg.max_epochs')
        self._seed_draws(self.dataloader, runner)

    def run(self) -> Any:
        """Train."""
        self.runner.call_hook('before_train')
        self.tell_finished('epoch', self._epoch, self._max_epochs)
        if self.resume_here():
            self._validate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def resume_here(self) -> bool:
        """Take up what a checkpoint brought along; whether its validation is still to be done."""
        state = self.take_up()
        if not state:
            return False
        batches = state.get('batches') or len(self.dataloader)
        done = self._iter - self._epoch * batches
        if batches != len(self.dataloader):
            self.runner.logger.warning(f'An epoch had {batches} batches and has {len(self.dataloader)} now: the run '
                                       f'goes on at the beginning of epoch {self._epoch + 1}')
            self._iter, done = self._epoch * len(self.dataloader), 0
        if done > 0:
            self._resumed = dict(state, done=done)
        else:
            self.set_states(state.get('random'))
        return bool(state.get('pending_validation')) and done <= 0 and self._epoch > 0

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        if (self.runner.val_loop is not None and self._epoch >= self.val_begin
                and (self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs)):
            self.runner.val_loop.run()

    def run_epoch(self) -> None:
        """Iterate one epoch, or what is left of it."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in self._batches():
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _batches(self) -> Any:
        """(index, batch) of the epoch. The random states are restored after the first batch of the rest was read: only
        then has a sampler drawn its order, which the states of the epoch's beginning decide."""
        resumed, self._resumed = self._resumed, None
        done = resumed['done'] if resumed else 0
        if resumed:
            self.set_states(resumed.get('epoch_random') or resumed.get('random'))
        self.epoch_states = _gathered()
        unread = begin_draws(self.dataloader, self._epoch, done)
        batches: Iterator[Any] = itertools.islice(iter(self.dataloader), unread, None)
        if resumed:
            first: Tuple[Any, ...] = tuple(itertools.islice(batches, 1))
            self.set_states(resumed.get('random'))
            batches = itertools.chain(first, batches)
        return enumerate(batches, start=done)


@LOOPS.register_module()
class IterTrainLoop(_Exact, IterBasedTrainLoop):
    """MMEngine's ``IterBasedTrainLoop``, with the same arguments, that resumes exactly.

    The batches before are read again and thrown away, as upstream does.

    Raises:
        ValueError: If there is nothing to train.
    """

    def __init__(self, runner: Any, dataloader: Any, max_iters: int, *args: Any, **kwargs: Any) -> None:
        if isinstance(dataloader, dict):
            # before upstream starts the workers
            dataloader = runner.build_dataloader(
                dataloader, seed=runner.seed, diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False))
        check_length(dataloader, max_iters, 'train_cfg.max_iters')
        self._seed_draws(dataloader, runner)
        super().__init__(runner, dataloader, max_iters, *args, **kwargs)

    def run(self) -> Any:
        """Train."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self.tell_finished('iter', self._iter, self._max_iters)
        if self._iter > 0:
            self.runner.logger.info(f'Reading {self._iter} batches again, to go on after them')
        for _ in range(self._iter):
            next(self.dataloader_iterator)
        state = self.take_up()
        self.set_states(state.get('random'))
        if state.get('pending_validation') and self._iter > 0:
            self._validate_if_due()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._validate_if_due()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        if (self.runner.val_loop is not None and self._iter >= self.val_begin
                and (self._iter % self.val_interval == 0 or self._iter == self._max_iters)):
            self.runner.val_loop.run()
