# SPDX-License-Identifier: Apache-2.0
"""Kernels of a training step, counted on any machine: what the time of a step on a GPU follows at these sizes.

A kernel is a dispatched operation that is no view and moves or makes numbers; casts are those that only change the
type; a synchronisation hands a number to Python or makes a size depend on values. Counted under bf16 autocast, forward
and backward, for the sizes of tests/cases.py, which has as many operations per block as the real sizes. Four columns
are counted with the lists of a GPU's autocast, whose norms, sums and powers give float32 (tests/gpu_autocast.py), the
last two on a ViT that is stored in bfloat16 (``base_dtype='bf16'``)::

    python benchmarks/kernels.py [--backbones vit video_swin] [--methods LoRA SynQT] [--new] [--write]
"""

import argparse
import json
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import torch
from benchmark_costs import build, last
from benchmark_plain import plain
from cases import BACKBONE, CASE, METHODS
from gpu_autocast import GpuAutocast
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

RESULTS = Path(__file__).resolve().parent / 'kernels.json'
_aten = torch.ops.aten
CASTS = {_aten._to_copy.default, _aten._foreach_copy_.default}
SYNCS = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default, _aten.item.default,
         _aten.is_nonzero.default, _aten.unique_dim.default, _aten._unique2.default, _aten.equal.default}
#: Dispatched, but nothing runs: memory without contents, and wrappers.
FREE = {_aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default, _aten.new_empty.default,
        _aten.new_empty_strided.default, _aten.detach.default, _aten.alias.default, _aten._unsafe_view.default,
        _aten.lift_fresh.default, _aten.resize_.default, _aten.set_.source_Storage_storage_offset}


#: A frozen base through which a gradient passes: what stands before its blocks trains, and nothing else.
PASSED = 'frozen base'
ENTRY = dict(vit='pos_embed', clip='pos_embed', swin='patch_embed.norm.bias', videomae='patch_embed.projection.bias',
             video_swin='patch_embed.norm.bias')
#: The case table drops nothing; SynQT draws masks by default.
DROPOUTS = 'SynQT, default dropouts'
#: As the published code trains before it prunes.
MASKS = 'E2VPT, masks trained'


def rows_of(backbone: str) -> List[Dict[str, Any]]:
    """Rows as of :func:`benchmark_costs.variants`, with ``tiny`` configs."""
    rows = [dict(name='full', tune=['*']), dict(name='linear probe'), dict(name=PASSED, tune=[ENTRY[backbone]]),
            *(dict(name=c.name, tiny=c.petl) for c in METHODS if backbone in c.on)]
    if backbone in CASE['SynQT'].on:
        config, = CASE['SynQT'].petl
        rows.append(dict(name=DROPOUTS, tiny=[{k: v for k, v in config.items() if not k.endswith('drop_rate')}]))
    if backbone in CASE['E2VPT'].on:
        config, = CASE['E2VPT'].petl
        rows.append(dict(name=MASKS, tiny=[dict(config, variant='released')]))
    return rows


@dataclass
class Kernels:
    """Counts of one step.

    Attributes:
        forward: Kernels of the forward pass, casts included.
        backward: Kernels of the backward pass, casts included.
        casts: Casts of both.
        syncs: Synchronisations of both.
        by_name: Kernels of both by the operation's name.
    """
    forward: int = 0
    backward: int = 0
    casts: int = 0
    syncs: int = 0
    by_name: Counter = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Kernels of the step."""
        return self.forward + self.backward


def _views(func: Any) -> bool:
    """Whether all results of an operation are views of its arguments."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


class _Counting(TorchDispatchMode):
    """Counts what is dispatched below autograd and autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter = Counter()
        self.casts = self.syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[Dict[str, Any]] = None) -> Any:
        if func in SYNCS:
            self.syncs += 1
        elif func not in FREE and not _views(func):
            self.names[str(func).removeprefix('aten.')] += 1
            self.casts += func in CASTS
        return func(*args, **(kwargs or {}))


def count(step: Callable[[], Tensor]) -> Kernels:
    """Kernels of ``step()``, which gives a scalar loss, and of its backward pass."""
    with _Counting() as counting:
        loss = step()
        forward = sum(counting.names.values())
        if loss.requires_grad:
            loss.backward()
    names = counting.names
    return Kernels(forward, sum(names.values()) - forward, counting.casts, counting.syncs, names)


def of_model(model: nn.Module, x: Tensor, last: Callable[[Any], Tensor], half: bool = True,
             gpu: bool = False) -> Kernels:
    """Kernels of one training step of a backbone under bf16 autocast; the second step is counted, when nothing is new.

    Args:
        model: In train mode.
        x: Input.
        last: Output -> feature.
        half: False counts in float32.
        gpu: Whether autocast has the lists of a GPU, whose norms and sums give float32.
    """

    def step() -> Tensor:
        with GpuAutocast() if gpu else nullcontext(), torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            return last(model(x)).float().sum()

    loss = step()
    if loss.requires_grad:
        loss.backward()
    model.zero_grad(set_to_none=True)
    found = count(step)
    model.zero_grad(set_to_none=True)
    return found


def main() -> None:
    """Count every row of tests/cases.py; ``--write`` stores the counts, which a test keeps from growing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--write', action='store_true', help=f'write {RESULTS.name}')
    parser.add_argument('--new', action='store_true', help='only rows that are not stored yet')
    parser.add_argument('--backbones', nargs='+', choices=list(BACKBONE), default=list(BACKBONE))
    parser.add_argument('--methods', nargs='+', metavar='ROW', help='some rows, by name')
    args = parser.parse_args()
    names = {row['name'] for backbone in BACKBONE for row in rows_of(backbone)}
    for name in args.methods or ():
        if name not in names:
            raise SystemExit(f'--methods {name!r}: unknown; known: {", ".join(sorted(names))}')
    rows = json.loads(RESULTS.read_text(encoding='utf-8')) if RESULTS.is_file() else {}  # what is not counted stays
    known = set(rows) if args.new else set()
    print(f'{"":34}{"kernels":>8}{"casts":>7}{"syncs":>7}{"plain":>7}{"/plain":>8}{"/full":>7}'
          f'{"gpu":>8}{"casts":>7}{"/plain":>8}{"/full":>7}{"stored":>8}{"casts":>7}')
    for name in args.backbones:
        full, gpu_full = (counted(BACKBONE[name], dict(name='full', tune=['*']), gpu=gpu)[0].total
                          for gpu in (False, True))
        for row in rows_of(name):
            if f'{name}: {row["name"]}' in known or row['name'] not in (args.methods or names):
                continue
            ours, plain_ = counted(BACKBONE[name], row)
            rows[f'{name}: {row["name"]}'] = dict(kernels=ours.total, forward=ours.forward, casts=ours.casts,
                                                  syncs=ours.syncs, plain=plain_.total if plain_ else None, full=full)
            there, plain_there = counted(BACKBONE[name], row, gpu=True)
            rows[f'{name}: {row["name"]}'].update(
                gpu_kernels=there.total, gpu_casts=there.casts, gpu_plain=plain_there.total if plain_there else None,
                gpu_full=gpu_full)
            more = ''
            if name == 'vit':  # the others save as much per block
                stored = counted(BACKBONE[name], row, 'bf16')[0]
                more = f'{stored.total:>8}{stored.casts:>7}'
                rows[f'{name}: {row["name"]}'].update(stored_kernels=stored.total, stored_casts=stored.casts)
            print(f'{name:12}{row["name"]:22}{ours.total:>8}{ours.casts:>7}{ours.syncs:>7}'
                  f'{plain_.total if plain_ else "-":>7}{ours.total / plain_.total if plain_ else float("nan"):>8.2f}'
                  f'{ours.total / full:>7.2f}{there.total:>8}{there.casts:>7}'
                  f'{there.total / plain_there.total if plain_there else float("nan"):>8.2f}'
                  f'{there.total / gpu_full:>7.2f}{more}', flush=True)
    if args.write:
        order = [f'{name}: {row["name"]}' for name in BACKBONE for row in rows_of(name)]
        rows = {name: rows[name] for name in order if name in rows}
        RESULTS.write_text(json.dumps(rows, indent=1) + '\n', encoding='utf-8')


def counted(backbone: Any, row: Dict[str, Any], base_dtype: Optional[str] = None,
            gpu: bool = False) -> Tuple[Kernels, Optional[Kernels]]:
    """Kernels of ours and of the plain form, None where there is no plain form.

    Args:
        backbone: Row of BACKBONES.
        row: Row as of :func:`benchmark_costs.variants`, with ``tiny`` configs.
        base_dtype: Of ours; with it there is no plain form.
        gpu: See :func:`of_model`.
    """
    torch.manual_seed(0)
    model, x = build(backbone, row, 'tiny', base_dtype=base_dtype), backbone.inputs(2)
    ours = of_model(model, x, last, gpu=gpu)
    form = None if base_dtype else plain(model)
    return ours, None if form is None else of_model(form, x, last, gpu=gpu)


if __name__ == '__main__':
    main()
