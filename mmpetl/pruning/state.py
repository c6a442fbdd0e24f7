# SPDX-License-Identifier: Apache-2.0
"""What a pruning keeps under ``<work_dir>/pruning``: how far it came, and the values from which trainings begin."""

import math
import os
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..registry import HOOKS
from ..tuning import adapter_state, find_backbone, unwrap
from ..weights.io import atomic_write, load_file, write_json
from ..weights.reading import read_json
from .scores import PromptScores

Snapshot = Dict[str, Tensor]
Pair = Tuple[int, int]


def take(model: nn.Module) -> Snapshot:
    """Copies on the CPU of all but the frozen base: methods, head and its buffers, tuned parameters of the base."""
    return {key: tensor.detach().cpu().clone().contiguous() for key, tensor in adapter_state(model).items()}


@torch.no_grad()
def restore(model: nn.Module, snapshot: Snapshot) -> None:
    """Put a snapshot back; methods take on its numbers of tokens.

    Raises:
        ValueError: If the snapshot is of another model.
    """
    backbone, prefix = find_backbone(model)
    own = adapter_state(model)
    if set(own) != set(snapshot):
        raise ValueError(f'the stored snapshot differs at {sorted(set(own) ^ set(snapshot))[0]!r}: it was made with '
                         'another model config')
    for name, method in backbone.petl.items():
        start = f'{prefix}petl.{name}.'
        method.load_state_dict({k.removeprefix(start): v for k, v in snapshot.items() if k.startswith(start)})
    for key, tensor in own.items():
        if not key.startswith(f'{prefix}petl.'):
            tensor.copy_(snapshot[key])
    backbone.petl.refresh()


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


class PruningFiles:
    """The files of one pruning: ``state.json`` and ``<name>.safetensors``. Only the main process touches the disk.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def save(self, state: PruningState) -> None:
        if is_main_process():
            write_json(self.path('state.json'), asdict(state))

    def load(self) -> Optional[PruningState]:
        """The stored state, or None if there is none.

        Raises:
            ValueError: If the file cannot be read as a state.
        """
        path = self.path('state.json')
        found = _from_main(path, _json)
        if found is None:
            return None
        if not isinstance(found, dict) or set(found) != {f.name for f in fields(PruningState)}:
            raise ValueError(f'{path} is not the state of a pruning run; remove it to start anew')
        return PruningState(**found)

    def put(self, name: str, snapshot: Snapshot) -> None:
        if is_main_process():
            atomic_write(self.path(f'{name}.safetensors'), lambda file: file.write(to_bytes(snapshot)))

    def get(self, name: str) -> Snapshot:
        """A snapshot by name.

        Raises:
            ValueError: If there is none.
        """
        path = self.path(f'{name}.safetensors')
        found = _from_main(path, lambda p: dict(load_file(p)['state_dict']))
        if found is None:
            raise ValueError(f'E2VPTLoop: {path} is missing: run phase train first in this work dir' +
                             (", or choose rewind='keep'" if name == 'init' else ''))
        return found


def _json(path: str) -> Any:
    try:
        return read_json(path)
    except ValueError:
        return 'damaged'


def _from_main(path: str, read: Callable[[str], Any]) -> Any:
    """What the main process reads from a file, in every process; None if there is no file."""
    found = [read(path) if is_main_process() and os.path.isfile(path) else None]
    broadcast_object_list(found)
    return found[0]


@HOOKS.register_module()
class StartHook(Hook):
    """Begin a training at the values of a snapshot, and note its validations; a resumed one goes on as it is.

    Args:
        path: The snapshot, ``<work_dir>/pruning/<name>.safetensors``.

    Raises:
        ValueError: If the snapshot is missing or of another model.
    """

    priority = 'HIGHEST'  # the guards remember what training begins with

    def __init__(self, path: str) -> None:
        self.folder, file = os.path.split(path)
        self.name = file.removesuffix('.safetensors')

    def before_train(self, runner: Any) -> None:
        if runner.iter == 0:
            restore(unwrap(runner.model), PruningFiles(self.folder).get(self.name))

    def after_val_epoch(self, runner: Any, metrics: Optional[Dict[str, float]] = None) -> None:
        before = runner.message_hub.runtime_info.get('validations', [])
        runner.message_hub.update_info('validations', [*before, {k: float(v) for k, v in (metrics or {}).items()}])
