# SPDX-License-Identifier: Apache-2.0
"""Two ways of keeping less for the backward pass: announced results that are computed again (mmpetl/recompute.py), and
torch's checkpoint of every block with a policy that says which operations' results are kept.

Counted for one block of the width of ViT-B (the difference between three blocks and two, float32, 50 tokens): what is
kept, in C = 768 numbers per token; operations of matrix products in a step; kernels of a step; operations that Python
handles one by one; CPU time of a step whose numbers cost nothing. The policies of torch:

* ``products``: the results of all matrix products and of attention are kept, as torch's guide advises.
* ``light``: of attention and of the products into q, k, v and the wide layer; the rest, proj too, is repeated: the
  counterpart of ``memory='light'``.
* ``lightest``: not of the wide layer either.
* ``best``: as ``light``, and of fc2, whose result some methods read.

    python benchmarks/selective.py [--methods LoRA SSF] [--write]
"""

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests'), str(ROOT / 'benchmarks')]

import torch
from benchmark_costs import Operations, build, last, variants
from benchmark_report import put_between
from cases import BACKBONE
from kernels import of_model
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mmpetl.backbones import block as block_room
from mmpetl.costs.memory import saved_bytes
from mmpetl.recompute import LEVELS

WIDTH, TOKENS = 768, 50
FORMS = {'standard': ('standard', None), 'light': ('light', None), 'lightest': ('lightest', None),
         'with_cp': ('blocks', None),
         **{f'torch {kind}': ('blocks', kind) for kind in ('products', 'light', 'lightest', 'best')}}
RESULTS = ROOT / 'docs' / 'benchmarks' / 'selective.json'
PAGE = ROOT / 'docs' / 'adr' / '0008-what-is-computed-again.md'
MARKS = ('<!-- selective: python benchmarks/selective.py --write -->', '<!-- end of selective -->')
_aten = torch.ops.aten
PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default}
ATTENTION = {getattr(_aten, f'_scaled_dot_product_{kind}').default
             for kind in ('flash_attention', 'efficient_attention', 'cudnn_attention', 'flash_attention_for_cpu')}
METHODS = ('full', 'LoRA', 'AdaptFormer', 'Adapter+', 'SSF', 'FacT-TT')


def policy(kind: str, asked: Counter, ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What torch asks of every operation within a block.

    Args:
        kind: 'products', 'light', 'lightest' or 'best'.
        asked: Counts the questions.
        ctx: torch's context.
        op: The operation, with its arguments.
    """
    asked['times'] += 1
    keep = op in ATTENTION
    if op in PRODUCTS:
        inner, outer = args[2 if op in (_aten.addmm.default, _aten.baddbmm.default) else 1].shape[-2:]
        wide, qkv = outer == 4 * WIDTH and inner == WIDTH, outer == 3 * WIDTH
        keep = kind == 'products' or qkv or (wide and kind != 'lightest') or (kind == 'best' and inner == 4 * WIDTH)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def selective(kind: Optional[str]) -> Iterator[Counter]:
    """Within the context a block with ``with_cp=True`` is checkpointed by a policy; None: as it is. Gives the counter
    of what torch asked."""
    before, asked = block_room.checkpoint, Counter()
    if kind is not None:
        contexts = partial(create_selective_checkpoint_contexts, partial(policy, kind, asked))
        block_room.checkpoint = partial(checkpoint, context_fn=contexts)
    try:
        yield asked
    finally:
        block_room.checkpoint = before


def set_form(model: Any, form: str) -> Optional[str]:
    """Give the blocks of a model a form of :data:`FORMS`; its policy."""
    memory, chosen = FORMS[form]
    for block in model.layers:
        block.with_cp, block.recompute_level = memory == 'blocks', LEVELS.get(memory, 0)
    return chosen


def counted(model: Any, form: str) -> Tuple[float, int, int, int]:
    """(kept numbers per token, operations, kernels, operations handled in Python) of a step."""
    with selective(set_form(model, form)) as asked:
        x = torch.randn(1, 3, 112, 112)
        kept = saved_bytes(model, x) / 4 / TOKENS
        asked.clear()
        with Operations() as operations:
            last(model(x)).sum().backward()
        questions = asked['times']
        model.zero_grad(set_to_none=True)
        return kept, operations.total, of_model(model, x, last, half=False).total, questions


def host_ms(model: Any, form: str) -> float:
    """Milliseconds of CPU time per block of a step at a size at which the numbers cost nothing; the least of 12."""
    x, times = BACKBONE['vit'].inputs(2), []
    with selective(set_form(model, form)):
        for _ in range(12):
            begin = time.process_time()
            last(model(x)).sum().backward()
            times.append(time.process_time() - begin)
    return 1e3 * min(times) / len(model.layers)


def table(rows: Dict[str, Dict[str, Dict[str, float]]]) -> str:
    """The counts as Markdown."""
    lines = ['| | ' + ' | '.join(FORMS) + ' |', '|---' * (len(FORMS) + 1) + '|']
    for name, forms in rows.items():
        for key, unit in (('kept', 'C'), ('gflop', 'GFLOP'), ('kernels', 'kernels'), ('host_ms', 'ms of CPU')):
            lines.append(f'| {name}, {unit} | ' + ' | '.join(f'{forms[form][key]:g}' for form in FORMS) + ' |')
    return '\n'.join(lines)


def write_page() -> None:
    """Put the stored counts into the page."""
    put_between(PAGE, *MARKS, table(json.loads(RESULTS.read_text(encoding='utf-8'))['rows']))


def main() -> None:
    """Measure and print; ``--write`` stores the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--methods', nargs='+', default=METHODS)
    parser.add_argument('--write', action='store_true', help=f'write {RESULTS.name} and the table of {PAGE.name}')
    args = parser.parse_args()
    rows: Dict[str, Dict[str, Dict[str, float]]] = {}
    torch.set_num_threads(1)
    for row in [r for r in variants(None) if r['name'] in args.methods]:
        archs = [dict(embed_dims=WIDTH, num_layers=n, num_heads=12, feedforward_channels=4 * WIDTH) for n in (2, 3)]
        two, three = (build(BACKBONE['vit'], row, 'base', arch=arch, img_size=112) for arch in archs)
        tiny = build(BACKBONE['vit'], row, 'tiny')
        for form in FORMS:
            kept, ops, kernels, asked = (b - a for a, b in zip(counted(two, form), counted(three, form)))
            host = host_ms(tiny, form)
            rows.setdefault(row['name'], {})[form] = dict(
                kept=round(kept / WIDTH, 2), gflop=round(ops / 1e9, 2), kernels=kernels, in_python=asked,
                host_ms=round(host, 1))
            print(f'{row["name"]:14}{form:16}{kept / WIDTH:7.2f} C{ops / 1e9:8.2f} GFLOP{kernels:6d} kernels'
                  f'{asked:6d} in Python{host:7.1f} ms', flush=True)
    if args.write:
        RESULTS.write_text(json.dumps(dict(torch=torch.__version__, rows=rows), indent=1) + '\n', encoding='utf-8')
        write_page()


if __name__ == '__main__':
    main()
