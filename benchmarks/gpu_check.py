# SPDX-License-Identifier: Apache-2.0
"""The check for GPUs, within a budget of time: bash tools/gpu_check.sh [--out FOLDER] [--minutes 9] [--device cuda].

1. Every method on every backbone (tests/device_checks.py), in several processes.
2. Runs through the tools (tests/gpu/test_runs.py).
3. Step times, peak memory and inputs per second at base size, beside full fine-tuning, the plain form, timm and peft.

Writes gpu_check.json and gpu_check.md. What the time did not suffice for is listed as not reached.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any, Dict, List, Sequence

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import torch
from benchmark_costs import ROOT, SHAPES, build, hardware, last, peak_bytes, seconds, share_trunk, train_step
from benchmark_plain import plain
from device_checks import CHECKS, FEW, ROWS, applies

#: Shares of the budget: methods, runs; speed gets the rest.
SHARES = (0.4, 0.3)
#: Backbone -> inputs of one step, as the figures to reach name them.
BATCHES = dict(vit=64, videomae=8, video_swin=4)
#: Methods that are timed, where the backbone carries them.
TIMED = ('LoRA', 'AdaptFormer', 'VPT', 'APT', 'PATT', 'PATT + AdaptFormer', 'SSF', 'SynQT')


def told(error: Exception) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {text[0][:300]}'


def methods(device: str, names: Sequence[str], until: float) -> List[Dict[str, Any]]:
    """Run the checks of some rows until a time, in seconds since the epoch; graphs last, they take longest."""
    found: List[Dict[str, Any]] = []
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    plan = [(row, check) for late in (False, True) for row in names for check in CHECKS
            if (check == 'graph') is late and applies(check, row, device)]
    for row, check in plan:
        entry: Dict[str, Any] = dict(row=row, check=check, state='not reached')
        if time.time() < until:
            try:
                entry.update(state='passed', figure=CHECKS[check](*ROWS[row], device))
            except Exception as error:  # one that fails must not hide the others
                entry.update(state='failed', message=told(error))
        found.append(entry)
    return found


def shards(args: argparse.Namespace, until: float) -> List[Dict[str, Any]]:
    """The checks of all rows, shared out over processes."""
    out = Path(args.out)
    workers = max(1, min(args.processes, len(args.rows)))
    commands = [[sys.executable, __file__, '--shard', str(out / f'shard{i}.json'), '--until', str(until), '--device',
                 args.device, '--rows', *args.rows[i::workers]] for i in range(workers)]
    for process in [subprocess.Popen(command, cwd=ROOT) for command in commands]:
        process.wait()
    found: List[Dict[str, Any]] = []
    for i, command in enumerate(commands):
        path = out / f'shard{i}.json'
        if path.exists():
            found += json.loads(path.read_text(encoding='utf-8'))
            path.unlink()
        else:
            names = command[command.index('--rows') + 1:]
            found.append(dict(row=names[0], check='process', state='failed', message=f'process {i} of the checks died'))
    return found


def runs(args: argparse.Namespace, until: float) -> List[Dict[str, Any]]:
    """The tests of runs, by pytest."""
    report = Path(args.out) / 'runs.xml'
    command = [sys.executable, '-m', 'pytest', 'tests/gpu/test_runs.py', '-q', '-m', 'gpu or not gpu',
               '-p', 'no:cacheprovider', f'--junitxml={report}']
    try:
        subprocess.run(command, cwd=ROOT, env=dict(os.environ, MMPETL_DEVICE=args.device),
                       timeout=max(1., until - time.time()))
    except subprocess.TimeoutExpired:
        return [dict(row='runs', check='all', state='failed', message='stopped: the time was over')]
    found = []
    for case in xml.parse(report).getroot().iter('testcase'):
        bad, skipped = next((n for n in case if n.tag in ('failure', 'error')), None), case.find('skipped')
        state = 'failed' if bad is not None else 'skipped' if skipped is not None else 'passed'
        entry: Dict[str, Any] = dict(row='run', check=case.get('name'), figure=float(case.get('time', 0)), state=state)
        message = bad if bad is not None else skipped
        if message is not None:
            entry['message'] = (message.get('message') or '').splitlines()[0][:300]
        found.append(entry)
    report.unlink()
    return found


# -- speed ------------------------------------------------------------------------------------------------------------


def _peers(backbone: str) -> Dict[str, torch.nn.Module]:
    """Full fine-tuning of timm's model and peft's LoRA, where they are installed."""
    found: Dict[str, torch.nn.Module] = {}
    if backbone != 'vit':
        return found
    from benchmark_peers import ClassToken, missing, peft_model
    if missing('timm') is None:
        import timm
        found['timm, full'] = timm.create_model('vit_base_patch16_224', num_classes=0)
    if missing('peft', 'transformers') is None:
        found['peft, LoRA on q and v'] = ClassToken(peft_model())
    return found


def speed(args: argparse.Namespace, until: float) -> List[Dict[str, Any]]:
    """Median milliseconds of a training step under bf16 autocast, peak memory and inputs per second."""
    from cases import BACKBONE, METHODS
    found = []
    for name, batch in BATCHES.items():
        backbone, size = BACKBONE[name], args.size
        x = torch.randn(2 if size == 'tiny' else batch, *(SHAPES[name] if size == 'base' else backbone.shape),
                        device=args.device)
        full = build(backbone, dict(tune=['*']), size).to(args.device)
        models: Dict[str, Any] = {'full': lambda model=full: model}
        models.update({key: (lambda m=m: m) for key, m in _peers(name).items() if size == 'base'})
        for case in METHODS:
            if case.name in TIMED and name in case.on:
                row = dict(petl=case.real, tiny=case.petl)
                models[case.name] = lambda row=row, b=backbone, s=size: build(b, row, s)
                models[f'{case.name}, plain'] = lambda row=row, b=backbone, s=size: plain(build(b, row, s))
        for key, make in models.items():
            entry = dict(row=name, check=key, batch=len(x), state='not reached')
            found.append(entry)
            if time.time() < until:
                try:
                    entry.update(_time(make, full, x, args))
                except Exception as error:  # such as too little memory
                    entry.update(state='failed', message=told(error))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return found


def _time(make: Any, full: torch.nn.Module, x: torch.Tensor, args: argparse.Namespace) -> Dict[str, Any]:
    model = make()
    if model is None:
        return dict(state='no plain form')
    model = model.to(args.device)
    model.train()
    share_trunk([full, getattr(model, 'model', model)])
    for _ in range(3):
        train_step(model, x, 'bf16')
    took = statistics.median(seconds(lambda: train_step(model, x, 'bf16')) for _ in range(args.steps))
    peak = peak_bytes(lambda: train_step(model, x, 'bf16'))
    with torch.no_grad():
        assert torch.isfinite(last(model(x)).float()).all(), 'the output is not finite'
    return dict(state='measured', milliseconds=1000 * took, per_second=len(x) / took, peak=peak)


# -- report -----------------------------------------------------------------------------------------------------------


def markdown(result: Dict[str, Any]) -> str:
    """The table of a check."""
    host = result['hardware']
    lines = [f'# Check on {host["gpu"] or host["cpu"]}, torch {host["torch"]}', '', f'{result["seconds"]:.0f} s.', '']
    names = [n for n in (*CHECKS, 'process') if any(e['check'] == n for e in result['methods'])]
    lines += ['## Methods', '', '| check | passed | failed | not reached | largest figure |', '|---|---|---|---|---|']
    for name in names:
        own = [e for e in result['methods'] if e['check'] == name]
        count = {s: sum(e['state'] == s for e in own) for s in ('passed', 'failed', 'not reached')}
        worst = max((e['figure'] for e in own if e.get('figure') is not None), default=None)
        lines.append(f'| {name} | {count["passed"]} | {count["failed"]} | {count["not reached"]} | '
                     f'{"" if worst is None else f"{worst:.1e}"} |')
    lines += ['', '## Runs', '', '| run | state | seconds |', '|---|---|---|']
    lines += [f'| {e["check"]} | {e["state"]} | {e.get("figure", 0):.1f} |' for e in result['runs']]
    lines += ['', '## Speed of a training step in bf16', '',
              '| backbone | row | batch | ms | inputs per s | peak MiB | of full | of plain |', '|' + '---|' * 8]
    time_of = {(e['row'], e['check']): e.get('milliseconds') for e in result['speed']}
    for e in result['speed']:
        if e['state'] != 'measured':
            lines.append(f'| {e["row"]} | {e["check"]} | {e["batch"]} | {e["state"]} | | | | |')
            continue
        of = [time_of.get((e['row'], key)) for key in ('full', f'{e["check"]}, plain')]
        shares = [f'{e["milliseconds"] / t:.2f}' if t else '' for t in of]
        peak = f'{e["peak"] / 2**20:.0f}' if e.get('peak') else ''
        lines.append(f'| {e["row"]} | {e["check"]} | {e["batch"]} | {e["milliseconds"]:.1f} | {e["per_second"]:.0f} | '
                     f'{peak} | {shares[0]} | {shares[1]} |')
    bad = [e for part in ('methods', 'runs', 'speed') for e in result[part] if e['state'] == 'failed']
    failures = [f'* {e["row"]} {e["check"]}: {e.get("message", "")}' for e in bad]
    lines += ['', '## Failures', '', *(failures or ['None.'])]
    return '\n'.join(lines) + '\n'


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='work_dirs/gpu_check', help='folder of the table and the JSON')
    parser.add_argument('--device', choices=['cuda', 'cpu', 'meta'], default='cuda')
    parser.add_argument('--minutes', type=float, default=9.)
    parser.add_argument('--processes', type=int, default=6, help='processes that share the rows')
    parser.add_argument('--rows', nargs='+', choices=list(ROWS), default=list(ROWS), metavar='ROW')
    parser.add_argument('--few', action='store_true', help=f'only {", ".join(FEW)}, tiny sizes, no runs')
    parser.add_argument('--size', choices=['base', 'tiny'], default='base', help='of the models that are timed')
    parser.add_argument('--steps', type=int, default=10, help='timed steps')
    parser.add_argument('--skip', nargs='*', choices=['methods', 'runs', 'speed'], default=[])
    parser.add_argument('--shard', help=argparse.SUPPRESS)
    parser.add_argument('--until', type=float, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Check; 1 if something failed."""
    args = parse(words)
    if args.shard:
        Path(args.shard).write_text(json.dumps(methods(args.device, args.rows, args.until)), encoding='utf-8')
        return 0
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise SystemExit('torch sees no GPU: name --device cpu or --device meta')
    if args.few:
        args.rows, args.size, args.processes, args.steps = list(FEW), 'tiny', 1, 1
        args.skip = [*args.skip, 'runs']
    began, total = time.time(), 60 * args.minutes
    Path(args.out).mkdir(parents=True, exist_ok=True)
    result: Dict[str, Any] = dict(hardware=hardware(), methods=[], runs=[], speed=[])
    skip = {*args.skip, *(('runs', 'speed') if args.device == 'meta' else ())}
    if 'methods' not in skip:
        result['methods'] = shards(args, began + SHARES[0] * total)
    if 'runs' not in skip:
        result['runs'] = runs(args, time.time() + SHARES[1] * total)
    if 'speed' not in skip:
        result['speed'] = speed(args, began + 0.95 * total)
    result['seconds'] = time.time() - began
    (Path(args.out) / 'gpu_check.json').write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    (Path(args.out) / 'gpu_check.md').write_text(markdown(result), encoding='utf-8')
    print(markdown(result))
    return int(any(e['state'] == 'failed' for part in ('methods', 'runs', 'speed') for e in result[part]))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
