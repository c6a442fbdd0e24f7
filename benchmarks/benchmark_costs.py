# SPDX-License-Identifier: Apache-2.0
"""What the benchmark commands share: rows of the table, floating-point operations, interleaved timing, the hardware's
name."""

import os
import platform
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT / 'tests', ROOT / 'benchmarks', ROOT):
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from mmengine.logging import MMLogger  # noqa: E402

import mmpetl  # noqa: E402

MMLogger.get_instance('mmpetl', log_level='ERROR')

MIB = 2**20
SHAPES = dict(
    vit=(3, 224, 224), clip=(3, 224, 224), swin=(3, 224, 224), videomae=(3, 16, 224, 224), video_swin=(3, 16, 224, 224))


# -- models -----------------------------------------------------------------------------------------------------------


#: Memory setting -> arguments of a backbone; 'blocks' recomputes every block.
MEMORY: Dict[str, Dict[str, Any]] = dict(
    standard={}, light=dict(memory='light'), lightest=dict(memory='lightest'), blocks=dict(with_cp=True))


def variants(names: Optional[Sequence[str]]) -> List[Dict[str, Any]]:
    """Rows of the table: full fine-tuning, linear probe, BitFit, and the methods of tests/cases.py at published size.

    Raises:
        SystemExit: If a name is unknown.
    """
    from cases import METHODS
    rows: List[Dict[str, Any]] = [
        dict(name='full', tune=['*']),
        dict(name='linear probe'),
        dict(name='BitFit', tune=['*bias*'])
    ]
    rows += [dict(name=c.name, petl=c.real, tiny=c.petl, on=c.on) for c in METHODS if c.real]
    unknown = set(names or ()) - {row['name'] for row in rows}
    if unknown:
        raise SystemExit(f'unknown method {sorted(unknown)[0]!r}; known: {", ".join(row["name"] for row in rows)}')
    return [row for row in rows if not names or row['name'] in names or row['name'] == 'full']


def build(backbone: Any,
          row: Dict[str, Any],
          size: str = 'base',
          memory: str = 'standard',
          **options: Any) -> nn.Module:
    """The backbone of one row, in train mode.

    Args:
        backbone: Row of BACKBONES in tests/cases.py.
        row: Row of :func:`variants`.
        size: 'base' or 'tiny'.
        memory: Key of :data:`MEMORY`.
        options: More arguments of the backbone.
    """
    arguments = backbone.real if size == 'base' else backbone.kwargs
    petl = row.get('petl' if size == 'base' else 'tiny', row.get('petl', []))
    chosen = dict(petl=petl, tune=row.get('tune', []), **MEMORY[memory], **options)
    model = mmpetl.registry.MODELS.build({'type': backbone.type, **arguments, **chosen})
    model.train()
    return model


def share_trunk(models: Sequence[nn.Module]) -> None:
    """Let the frozen parameters of all models be those of the first, so that many fit into memory."""
    first = {n: p for n, p in models[0].named_parameters() if not n.startswith('petl.')}
    for model in models[1:]:
        for name, p in model.named_parameters():
            if name in first and not p.requires_grad and first[name].shape == p.shape:
                p.data = first[name].data


# -- operations -------------------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts floating-point operations of matrix products and convolutions, two per multiply-add."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[Dict[str, Any]] = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def flops(model: nn.Module, x: Tensor) -> Tuple[int, int]:
    """Operations of one forward and of one backward pass, attention included; on any device, the meta device too.

    Attention runs as matrix products, because a fused kernel has no formula on every device. What is recomputed counts
    as backward.
    """
    with sdpa_kernel(SDPBackend.MATH), Operations() as counted:
        loss = last(model(x)).sum()
        forward = counted.total
        if loss.requires_grad:
            loss.backward()
    model.zero_grad(set_to_none=True)
    return forward, counted.total - forward


def last(output: Any) -> Tensor:
    """The last feature of a backbone's output; the feature of a transformers model."""
    if hasattr(output, 'last_hidden_state'):
        return output.last_hidden_state
    while isinstance(output, (tuple, list)):
        output = output[-1]
    return output


# -- time -------------------------------------------------------------------------------------------------------------


def device() -> str:
    """'cuda' where there is one, else 'cpu'."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def train_step(model: nn.Module, x: Any, amp: Optional[str] = None) -> None:
    """One forward and backward pass; gradients are dropped."""
    kind = device()
    context = torch.autocast(kind, getattr(torch, {
        'bf16': 'bfloat16',
        'fp16': 'float16'
    }[amp])) if amp else nullcontext()
    with context:
        loss = last(model(x)).float().square().mean()
    if loss.requires_grad:
        loss.backward()
    model.zero_grad(set_to_none=True)


def seconds(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, the device's work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


def peak_bytes(run: Callable[[], Any]) -> Optional[int]:
    """Most device memory that one call takes beside what was there before; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def interleave(runs: Dict[str, Callable[[], Any]], rounds: int, title: str = '',
               clock: Callable[[], float] = time.perf_counter) -> Dict[str, List[float]]:
    """Seconds of every call in ``rounds`` rounds, taken in turns after one round that does not count; a busy machine
    slows all alike. ``clock``: ``time.process_time`` counts what the processor gave to this process alone."""
    found: Dict[str, List[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            took = seconds(run, clock)
            if number:
                found[name].append(took)
        if title:
            print(f'{title}: round {number} of {rounds}', file=sys.stderr, flush=True)
    return found


def ratio(a: Sequence[float], b: Sequence[float]) -> Dict[str, float]:
    """Median, smallest and largest ratio of the rounds of two runs."""
    ratios = [x / y for x, y in zip(a, b)]
    return dict(median=statistics.median(ratios), low=min(ratios), high=max(ratios))


# -- hardware ---------------------------------------------------------------------------------------------------------


def hardware() -> Dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.exists():
        model = next((line.split(':', 1)[1].strip()
                      for line in info.read_text().splitlines() if line.startswith('model name')), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return dict(cpu=model, cores=cores, threads=torch.get_num_threads(), gpu=gpu, torch=torch.__version__,
                version=mmpetl.__version__)


def results_folder(out: Path) -> Path:
    """Where results of this machine go: one folder per processor or GPU."""
    here = hardware()
    name = here['gpu'] or here['cpu']
    folder = out / ''.join(c if c.isalnum() else '-' for c in name).strip('-').lower()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
