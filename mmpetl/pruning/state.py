"""What a pruning run must remember to go on after a kill: a JSON file, snapshots of the trained values, and a picture
of both."""

import math
import os
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Dict, List, Optional, Tuple

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..tuning import adapter_state, find_backbone
from ..weights.io import atomic_write, load_file, write_json
from ..weights.reading import read_json
from .scores import PromptScores

Snapshot = Dict[str, Tensor]


def take(model: nn.Module) -> Snapshot:
    """Copies, on the CPU, of all that is not the frozen trunk: methods, head, tuned trunk parameters, buffers of the
    head."""
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
        raise ValueError(
            f'the stored snapshot differs at {sorted(set(own) ^ set(snapshot))[0]!r}: it was made with another model '
            f'config'
        )
    for name, method in backbone.petl.items():
        start = f'{prefix}petl.{name}.'
        method.load_state_dict({k.removeprefix(start): v for k, v in snapshot.items() if k.startswith(start)})
    for key, tensor in own.items():
        if not key.startswith(f'{prefix}petl.'):
            tensor.copy_(snapshot[key])
    backbone.petl.refresh()


@dataclass
class PruningState:
    """Progress of one pruning run.

    Attributes:
        num_tokens: Prompts P of the unpruned model.
        segments: Segments S of each.
        done: Finished phases.
        scores: ``{'tokens': P numbers, 'segments': P x S numbers, 'samples': count}``.
        runs: Finished candidates of the search: ``{'tokens', 'segments', 'value'}``.
        chosen: Pruned (tokens, segments per token).
        kept: ``{'tokens': ids, 'segments': {id: segment ids}}`` of the chosen pair.
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

    def prompt_scores(self) -> PromptScores:
        """The stored scores.

        Raises:
            ValueError: If there are none.
        """
        if self.scores is None:
            raise ValueError("E2VPTLoop: there are no scores yet: put phase 'score' before 'prune'")
        tokens, segments = (torch.tensor(self.scores[k], dtype=torch.float64) for k in ('tokens', 'segments'))
        return PromptScores(tokens, segments, self.scores['samples'])

    def set_scores(self, scores: PromptScores) -> None:
        self.scores = dict(tokens=scores.tokens.tolist(), segments=scores.segments.tolist(), samples=scores.samples)

    def masks(self, pair: Tuple[int, int]) -> Tuple[Tensor, Tensor]:
        """Keep-masks (P,) and (P, S) of a pair; without pruning no scores are needed."""
        if tuple(pair) == (0, 0):
            return torch.ones(
                self.num_tokens, dtype=torch.bool), torch.ones(
                    self.num_tokens, self.segments, dtype=torch.bool)
        return self.prompt_scores().choose(*pair)

    def choose(self, pair: Tuple[int, int]) -> None:
        tokens, segments = self.masks(pair)
        ids = tokens.nonzero()[:, 0].tolist()
        self.chosen = list(pair)
        self.kept = dict(tokens=ids, segments={str(i): segments[i].nonzero()[:, 0].tolist() for i in ids})

    def value(self, pair: Tuple[int, int]) -> Optional[float]:
        """The value found for a candidate, or None."""
        found = [run['value'] for run in self.runs if (run['tokens'], run['segments']) == tuple(pair)]
        return None if not found else math.nan if found[0] is None else found[0]

    def add_run(self, pair: Tuple[int, int], value: float) -> None:
        # JSON has no NaN.
        self.runs.append(dict(tokens=pair[0], segments=pair[1], value=value if math.isfinite(value) else None))

    def forget(self, phases: List[str]) -> None:
        """Drop what the given phases found, because they run anew."""
        self.done = [p for p in self.done if p not in phases]
        if 'score' in phases:
            self.scores = None
        if 'score' in phases or 'prune' in phases:
            self.runs, self.chosen, self.kept = [], None, None
        self.results = {k: v for k, v in self.results.items() if k not in phases}


class PruningFiles:
    """The files of one pruning run: ``state.json``, ``<name>.safetensors``, ``timeline.png``. Only the main process
    touches the disk.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._held: Dict[str, Snapshot] = {}

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
        found: List[Any] = [None]
        path = self.path('state.json')
        if is_main_process() and os.path.isfile(path):
            try:
                found = [read_json(path)]
            except ValueError as error:
                found = [str(error)]
        broadcast_object_list(found)
        known = {f.name for f in fields(PruningState)}
        if found[0] is None:
            return None
        if not isinstance(found[0], dict) or set(found[0]) != known:
            raise ValueError(f'{path} is not the state of a pruning run; remove it to start anew')
        return PruningState(**found[0])

    def put(self, name: str, snapshot: Snapshot) -> None:
        self._held[name] = snapshot
        if is_main_process():
            data = to_bytes(snapshot)
            atomic_write(self.path(f'{name}.safetensors'), lambda file: _write(file, data))

    def get(self, name: str) -> Optional[Snapshot]:
        """A snapshot by name, or None if there is none; the main process reads, the others receive it."""
        if name not in self._held:
            found: List[Any] = [None]
            path = self.path(f'{name}.safetensors')
            if is_main_process() and os.path.isfile(path):
                found = [dict(load_file(path)['state_dict'])]
            broadcast_object_list(found)
            if found[0] is None:
                return None
            self._held[name] = found[0]
        return self._held[name]


def _write(file: Any, data: bytes) -> None:
    file.write(data)
