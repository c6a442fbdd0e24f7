# SPDX-License-Identifier: Apache-2.0
"""Whether training on a base in fewer bits reaches what it does on the float32 base: LoRA, digits, three seeds each.

    python tools/fetch_data.py dinov2-vits14 small-suite
    python benchmarks/base_accuracy.py             some twenty seconds a run on one core; goes on where it was cut
    python benchmarks/base_accuracy.py --write     what is measured, into docs/configs.md

The recipe is configs/small_suite/numbers.py at the middle rate of benchmark_methods.py, the same for every
``base_dtype``: nothing is searched. A seed draws the same adapter, head and batches for every form of the base, so
differences are taken within seeds.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Dict, List

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from benchmark_methods import METHODS, ROOT, Method, run_method, swept
from benchmark_report import markdown, print_table, put_between

from mmpetl.sweeps.compare import interval
from mmpetl.sweeps.workers import Worker

FORMS = ('float32', 'bf16', 'int8', 'nf4')
PAGE = ROOT / 'docs' / 'configs.md'
MARKS = '<!-- base_accuracy: python benchmarks/base_accuracy.py --write -->', '<!-- end of base_accuracy -->'
HEADER = ['base_dtype', 'accuracy, %', 'beside float32, points', 'single seeds, %', 'processor time, s']


def method_on(form: str) -> Method:
    """The row of benchmark_methods.py, on a base in one form."""
    row = METHODS['LoRA']
    dtype = None if form == 'float32' else form
    return row._replace(more=dict(model=dict(backbone=dict(petl=list(row.petl), base_dtype=dtype))))


def measure(out: Path, until: float = float('inf')) -> None:
    """Run what is not there yet."""
    worker = Worker()
    try:
        for form in FORMS:
            METHODS[form] = method_on(form)
            run_method(form, ['digits'], out, worker, until, search=False)
    finally:
        worker.close()


def shown(values: List[float], sign: str = '') -> str:
    """Mean with half of its 95 % confidence interval by Student."""
    return f'{statistics.fmean(values):{sign}.1f} ± {interval(values) or 0:.1f}'


def rows(found: Dict[str, Dict[str, float]], seconds: Dict[str, float]) -> List[List[str]]:
    """Cells of the table, of the forms that are whole: form -> run -> accuracy in %, form -> seconds."""
    plain, cells = found.get('float32', {}), []
    for form in FORMS:
        runs = found.get(form, {})
        if len(runs) < 3 or runs.keys() != plain.keys():
            cells.append([form, 'not measured', '', '', ''])
            continue
        gaps = '' if form == 'float32' else shown([runs[run] - plain[run] for run in runs], '+')
        cells.append([form, shown(list(runs.values())), gaps, ', '.join(f'{s:.1f}' for s in runs.values()),
                      f'{seconds[form]:.0f}'])
    return cells


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'base_accuracy')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='start no run after so many minutes')
    parser.add_argument('--write', action='store_true', help=f'train nothing: the table into {PAGE.relative_to(ROOT)}')
    args = parser.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    if not args.write:
        measure(args.out, time.time() + 60 * args.minutes)
    cells = {row.name: row.cells['digits'] for row in swept(args.out) if 'digits' in row.cells}
    table = rows({name: cell.by_run for name, cell in cells.items()},
                 {name: cell.run_cpu_seconds or 0. for name, cell in cells.items()})
    title = 'LoRA (rank 8 on q, k, v) on 1,000 digits, one epoch, 500 test images, three seeds'
    print_table(title, HEADER, table)
    if args.write:
        put_between(PAGE, *MARKS, f'{title} (measured):\n\n{markdown(HEADER, table)}')


if __name__ == '__main__':
    main()
