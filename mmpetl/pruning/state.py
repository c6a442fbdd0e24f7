# SPDX-License-Identifier: Apache-2.0
"""What a pruning keeps under ``<work_dir>/pruning``: how far it came, and the values from which trainings begin."""

import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..registry import HOOKS
from ..tuning import adapter_state, find_backbone, unwrap
from ..weights.io import atomic_write, load_file, write_json
from ..weights.reading import read_json
from .scores import PromptScores, find_prunable

Pair = Tuple[int, int]


@dataclass
class PruningState:
    """Progress of one pruning.

    Attributes:
        num_tokens: Prompts P of the unpruned model.
        segments: Segments S of each.
        done: Finished phases.
        scores: ``{'tokens': P numbers, 'segments': P x S numbers, 'samples': count}``.
        runs: Finished candidates of the search: ``{'tokens', 'segments', 'value'}``.
        chosen: Pruned (tokens, segments per token).
        kept: ``{'tokens': ids, 'segments': {id: segment ids}}`` of the chosen pair: E2VPT's option ``kept``.
        results: Last validation metrics of 'train' and 'retrain'.
    """
    num_tokens: int
    segments: int
    done: List[str] = field(default_factory=list)
    scores: Optional[Dict[str, Any]] = None
    runs: List[Dict[str, Any]] = field(default_factory=list)
    chosen: Optional[List[int]] = None
    kept: Optional[Dict[str, Any]] = None
    results: Dict[str, Dict[str, float]] = field(default_factory=dict)

    def masks(self, pair: Sequence[int]) -> Tuple[Tensor, Tensor]:
        """Keep-masks (P,) and (P, S) of pruned (tokens, segments per token).

        Raises:
            ValueError: If something is to be pruned and there are no scores.
        """
        if tuple(pair) == (0, 0):
            return (torch.ones(self.num_tokens, dtype=torch.bool),
                    torch.ones(self.num_tokens, self.segments, dtype=torch.bool))
        if self.scores is None:
            raise ValueError("E2VPTLoop: there are no scores yet: put phase 'score' before 'prune'")
        tokens, segments = (torch.tensor(self.scores[k], dtype=torch.float64) for k in ('tokens', 'segments'))
        return PromptScores(tokens, segments, self.scores['samples']).choose(*pair)

    def kept_of(self, pair: Sequence[int]) -> Dict[str, Any]:
        """What is left of a pair, in the form of ``kept``."""
        tokens, segments = self.masks(pair)
        ids = tokens.nonzero()[:, 0].tolist()
        return dict(tokens=ids, segments={str(i): segments[i].nonzero()[:, 0].tolist() for i in ids})

    def value(self, pair: Pair) -> Optional[float]:
        """The value found for a candidate, or None."""
        found = [run['value'] for run in self.runs if (run['tokens'], run['segments']) == tuple(pair)]
        return None if not found else math.nan if found[0] is None else found[0]

    def add_run(self, pair: Pair, value: float) -> None:
        # JSON has no NaN.
        self.runs.append(dict(tokens=pair[0], segments=pair[1], value=value if math.isfinite(value) else None))

    def forget(self, phases: Sequence[str]) -> None:
        """Drop what the given phases found, because they run anew."""
        self.done = [p for p in self.done if p not in phases]
        if 'score' in phases:
            self.scores = None
        if 'score' in phases or 'prune' in phases:
            self.runs, self.chosen, self.kept = [], None, None
        self.results = {k: v for k, v in self.results.items() if k not in phases}


def load_state(folder: str) -> Optional[PruningState]:
    """The state in ``folder/state.json``, or None if there is none.

    Raises:
        ValueError: If the file cannot be read as a state.
    """
    path = os.path.join(folder, 'state.json')
    if not os.path.isfile(path):
        return None
    try:
        return PruningState(**read_json(path))
    except (TypeError, ValueError) as error:
        raise ValueError(f'{path} is not the state of a pruning run; remove it to start anew') from error


def save_state(folder: str, state: PruningState) -> None:
    """Write ``folder/state.json``, in the main process alone."""
    if is_main_process():
        write_json(os.path.join(folder, 'state.json'), asdict(state))


def store(model: nn.Module, path: str) -> None:
    """Write all but the frozen base: methods, head and its buffers, tuned parameters of the base."""
    if is_main_process():
        values = {key: tensor.detach().cpu().contiguous() for key, tensor in adapter_state(model).items()}
        atomic_write(path, lambda file: file.write(to_bytes(values)))
    barrier()


def restore(model: nn.Module, path: str) -> None:
    """Put stored values back; methods take on their numbers of tokens.

    Raises:
        ValueError: If they are missing or of another model.
    """
    if not os.path.isfile(path):
        raise ValueError(f'E2VPTLoop: {path} is missing: run phase train first in this work dir')
    values, own = load_file(path)['state_dict'], adapter_state(model)
    if set(own) != set(values):
        raise ValueError(f'{path} differs at {sorted(set(own) ^ set(values))[0]!r}: it was made with another model '
                         'config')
    backbone, prefix = find_backbone(model)
    for name, method in backbone.petl.items():
        start = f'{prefix}petl.{name}.'
        method.load_state_dict({k.removeprefix(start): v for k, v in values.items() if k.startswith(start)})
    with torch.no_grad():
        for key, tensor in own.items():
            if not key.startswith(f'{prefix}petl.'):
                tensor.copy_(values[key])
    backbone.petl.refresh()


@HOOKS.register_module()
class StartHook(Hook):
    """Begin a training at stored values, without what ``kept`` of the model's E2VPT leaves out.

    A resumed training goes on as it is.

    Args:
        path: The values, ``<work_dir>/pruning/<name>.safetensors``; None: those that the model draws.

    Raises:
        ValueError: If the values are missing or of another model.
    """

    priority = 'HIGHEST'  # the guards remember what training begins with

    def __init__(self, path: Optional[str] = None) -> None:
        self.path = path
        self.masks: Tuple[Tensor, Tensor]

    def before_run(self, runner: Any) -> None:
        # as kept says; load_from may bring others
        method = find_prunable(unwrap(runner.model))[2]
        self.masks = method.token_mask.bool(), method.segment_mask.bool()

    def before_train(self, runner: Any) -> None:
        if runner.iter:
            return
        if self.path:
            restore(unwrap(runner.model), self.path)
        backbone, _, method = find_prunable(unwrap(runner.model))
        if not method.token_mask.requires_grad:  # else masks are trained: nothing is pruned yet
            method.prune(*self.masks)
            backbone.petl.refresh()
