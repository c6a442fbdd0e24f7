# SPDX-License-Identifier: Apache-2.0
"""Tables, plot and docs page of the benchmark commands, made from their results alone."""

import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tools'))

from pages import between  # noqa: E402

from mmpetl.weights import atomic_write  # noqa: E402
from mmpetl.weights.io import write_json  # noqa: E402

#: Files that the commands write, in the order of the page, with their headings.
SECTIONS = (('targets.json', 'Targets'), ('methods.json', 'Every method'), ('peers.json', 'Peers'),
            ('published.json', 'The published code'), ('compile.json', 'torch.compile'), ('data.json', 'Data path'))
#: Methods that the page shows; all are in the tables beside it.
GLANCE = ('full', 'linear probe', 'LoRA', 'AdaptFormer', 'VPT', 'SSF', 'FacT-TT', 'SynQT')
HEAD = """# Benchmarks
Written by `python benchmarks/benchmark.py --write-docs` from the tables in `docs/benchmarks/`; do not edit. The commands that measure:
```bash
python benchmarks/benchmark.py --memory light lightest --batch 2 --backbones clip swin videomae video_swin   # counted only
python benchmarks/benchmark.py --memory light lightest --steps 2 --timed-batch 2 --untimed lightest          # ViT, timed
python benchmarks/benchmark.py --targets --timed-batch 4
python benchmarks/benchmark_peers.py --skip-startup     # peft, timm, mmpretrain, mmaction2
python benchmarks/benchmark_published.py --help         # the methods' published code, from checkouts that you have
python benchmarks/benchmark_compile.py
python benchmarks/data_throughput.py --rounds 3         # decoding, cache, transforms
```

*Kept*: bytes that a training step holds for the backward pass per input, without parameters, input, head and loss, counted on torch's meta
device. *Plain*: the published formula written out (`benchmarks/benchmark_plain.py`; tests show equal outputs and gradients); the published code itself has a
section of its own (of its files, the parts that run).
*Base alone*: a pass of the frozen base and, but for SynQT, a gradient through it down to its position embedding, a little further than a method
inside the first block needs. Times: medians of the ratios of interleaved rounds in one process (smallest-largest). Kernels and casts: `python benchmarks/kernels.py`. Nothing here was
measured on a GPU: `bash tools/gpu_check.sh` does. SynQT keeps 0.268 of full, with `memory='light'` 0.068, the default of mmpetl 0.1.0 (its table below says so).
"""


def number(value: Optional[float], form: str = '.2f', scale: float = 1.) -> str:
    """A figure, or a dash."""
    return '–' if value is None else format(value if form == 'd' else value / scale, form)


def spread(found: Optional[Dict[str, float]]) -> str:
    """Median (smallest-largest)."""
    if found is None:
        return '–'
    form = '.2f' if found['median'] >= 0.3 else '.3f'
    return f'{found["median"]:{form}} ({found["low"]:{form}}-{found["high"]:{form}})'


#: Columns of ``--kernels``: of ours, of the plain form.
KERNELS = ('kernels fwd', 'bwd', 'casts', 'syncs')


def kernel_cells(row: Dict[str, Any], full: Dict[str, int]) -> List[str]:
    """Cells of ``--kernels``; of full is ours over our full fine-tuning."""
    own, textbook = row.get('kernels'), row.get('plain_kernels')
    totals = [None if each is None else each['forward'] + each['backward'] for each in (own, textbook, full)]
    cells = [number(None if each is None else each[key], 'd') for each in (own, textbook)
             for key in ('forward', 'backward', 'casts', 'syncs')]
    shares = [None if totals[0] is None or base is None else totals[0] / base for base in totals[1:]]
    return [*cells, *(number(share) for share in shares)]


def method_columns(rows: Sequence[Dict[str, Any]]) -> Tuple[List[str], List[List[str]]]:
    """Header and cells of one backbone's table; the first row is full fine-tuning."""
    timing, gpu = 'time_of_full' in rows[0], 'peak' in rows[0]
    header = [
        'method', 'trainable', 'kept MiB', 'of full', 'plain MiB', 'of plain', 'GFLOP fwd', 'bwd', 'plain fwd', 'bwd'
    ]
    counted = rows[0].get('kernels')
    header += [*KERNELS, *(f'plain {name}' for name in KERNELS), 'of plain', 'of full'] if counted else []
    header += ['step of full', 'step of plain'] if timing else []
    header += ['step ms', 'peak MiB', 'plain peak MiB'] if gpu else []
    table = []
    for row in rows:
        of_plain = row['kept'] / row['plain_kept'] if row['plain_kept'] else None
        cells = [
            row['name'], f'{row["parameters"]:,}',
            number(row['kept'], '.2f', 2**20),
            number(row['kept'] / rows[0]['kept'], '.3f'),
            number(row['plain_kept'], '.2f', 2**20),
            number(of_plain, '.3f')
        ]
        cells += [number(row[key], '.4g', 1e9) for key in ('forward', 'backward', 'plain_forward', 'plain_backward')]
        cells += kernel_cells(row, counted) if counted else []
        cells += [spread(row.get('time_of_full')), spread(row.get('time_of_plain'))] if timing else []
        if gpu:
            cells += [
                number(row.get('milliseconds'), '.1f'),
                *(number(row.get(key), '.0f', 2**20) for key in ('peak', 'plain_peak'))
            ]
        table.append(cells)
    return header, table


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Table
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify='right' if i else 'left')
    for row in rows:
        table.add_row(*(str(c).replace('[', r'\[') for c in row))
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def show(rows: List[Dict[str, Any]], title: str) -> None:
    """Print one backbone's table."""
    print_table(title, *method_columns(rows))


def plot(results: Dict[str, List[Dict[str, Any]]], path: Path) -> None:
    """Kept bytes over trainable parameters; a line leads from each plain form to ours."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(9, 6), dpi=150, layout='constrained')
    for name, rows in results.items():
        full = rows[0]['kept']
        found = [r for r in rows if r['parameters'] and r['kept']]
        dots = axes.scatter([r['parameters'] for r in found], [r['kept'] / full for r in found], label=name, alpha=0.8)
        for r in found:
            at = (r['parameters'], r['kept'] / full)
            axes.annotate(r['name'], at, (4, 3), textcoords='offset points', fontsize=6)
            if r['plain_kept']:
                axes.plot(
                    [at[0]] * 2, [at[1], r['plain_kept'] / full],
                    color=dots.get_facecolor()[0],
                    linewidth=0.8,
                    alpha=0.5)
    axes.set(xscale='log', yscale='log', xlabel='trainable parameters',
             ylabel='kept for the backward pass, of full fine-tuning (line: up to the plain form)')
    axes.grid(True, alpha=0.25)
    axes.legend()
    atomic_write(path, lambda file: figure.savefig(file, format='png'))
    plt.close(figure)


# -- the page ---------------------------------------------------------------------------------------------------------


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of a page."""
    lines = ['| ' + ' | '.join(header) + ' |', '|---' + '|---:' * (len(header) - 1) + '|']
    return '\n'.join(lines + ['| ' + ' | '.join(str(c).replace('|', '/') for c in row) + ' |' for row in rows])


def put_between(page: Path, begin: str, end: str, text: str) -> None:
    """Write ``text`` between two marks of a page.

    Raises:
        ValueError: If the page has not both marks.
    """
    whole = between(page.read_text(encoding='utf-8'), begin, end, text)
    atomic_write(page, lambda file: file.write(whole.encode()))


def machine(found: Dict[str, Any]) -> str:
    """The hardware in words."""
    device = f'{found["gpu"]}, ' if found['gpu'] else ''
    threads = f'{found["threads"]} thread{"s" if found["threads"] != 1 else ""}'
    versions = f'torch {found["torch"]}, mmpetl {found["version"]}'
    return f'{device}{found["cpu"]}, {found["cores"]} of its cores, {threads}, {versions}'


def tables_of(name: str, results: Dict[str, Any]) -> Dict[str, Any]:
    """What is stored beside the page: ``{'machine', 'settings', 'tables': [{'title', 'header', 'rows', 'note'}]}``."""
    if name == 'methods.json':
        tables = []
        for found in results['backbones'].values():
            header, rows = method_columns(found['rows'])
            tables.append(dict(title=f'{found["title"]}: {found["settings"]}', header=header, rows=rows))
    else:
        tables = results['tables']
    return dict(machine=machine(results['hardware']), device=results['hardware']['gpu'] or results['hardware']['cpu'],
                settings=results.get('settings', ''), tables=tables)


def section(name: str, stored: Dict[str, Any]) -> str:
    """Body of one section of the page: of the targets, how many are met; of the methods, some; else the first table."""
    table = stored['tables'][0]
    header, rows = table['header'], table['rows']
    if name == 'targets.json':
        at = header.index('met')
        missed = [row[0] for row in rows if row[at] == 'missed']
        return f'{sum(row[at].startswith("met") for row in rows)} of {len(rows)} are met.' + (
            f' Missed: {"; ".join(missed)}.' if missed else '')
    if name == 'methods.json':
        wanted = [i for i, column in enumerate(header) if i == 0 or column.startswith(('of ', 'step of '))]
        rows = [[row[i] for i in wanted] for row in rows if row[0] in GLANCE]
        header = [{'of full': 'kept of full', 'of plain': 'kept of plain'}.get(header[i], header[i]) for i in wanted]
    title = f'{table["title"]}.\n\n' if table.get('title') else ''
    return title + markdown(header, rows)


def write_docs(out: Path, page: Path) -> Path:
    """Store the results below ``out``, one folder per machine, as tables beside the page, and write the page from all
    that are stored.

    Raises:
        SystemExit: If there are none.
    """
    beside = page.with_suffix('')
    for file in sorted(f for f in out.glob('*/*.json') if f.name in dict(SECTIONS)):
        write_json(beside / file.parent.name / file.name, tables_of(file.name, json.loads(file.read_text())))
    folders = sorted({f.parent for f in beside.glob('*/*.json') if f.name in dict(SECTIONS)})
    if not folders:
        raise SystemExit(f'no results below {out}: run the commands of benchmarks/benchmark.py first')
    text = page_of(folders)
    atomic_write(page, lambda file: file.write(text.encode()))
    return page


def page_of(folders: Sequence[Path]) -> str:
    """The page, from the stored tables of every machine."""
    parts = [HEAD]
    for folder in folders:
        found = [(name, title, json.loads((folder / name).read_text(encoding='utf-8'))) for name, title in SECTIONS
                 if (folder / name).exists()]
        parts.append(f'## {found[0][2]["device"]}\n{found[0][2]["machine"]}.')
        for name, title, stored in found:
            settings = f'{stored["settings"]}; ' if stored['settings'] else ''
            link = f'{folder.parent.name}/{folder.name}/{name}'
            parts.append(f'### {title}\n{settings}[all tables]({link}). {section(name, stored)}\n')
    return '\n'.join(parts)
