# SPDX-License-Identifier: Apache-2.0
"""The check for GPUs, within a budget of time: bash tools/gpu_check.sh [--out FOLDER] [--minutes 9] [--device cuda].

1. Every method on every backbone (tests/device_checks.py), in several processes.
2. Runs through the tools (tests/gpu/test_runs.py).
3. Step times, peak memory and inputs per second at base size, beside full fine-tuning, the plain form, timm and peft.

Every part runs in processes of its own, which note each result in a file of lines at once. One that hangs or dies is
named, ended and started again for what is left. gpu_check.json and gpu_check.md are written again and again, so that
they are there if the check is killed half way. What the time did not suffice for is listed as not reached.
"""

import argparse
import faulthandler
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import torch
from benchmark_costs import ROOT, SHAPES, build, hardware, last, peak_bytes, seconds, share_trunk, train_step
from benchmark_plain import plain
from device_checks import CHECKS, FEW, ROWS, applies

PARTS = ('methods', 'runs', 'speed')
#: Shares of the budget: methods, runs; speed gets the rest.
SHARES = (0.4, 0.3)
#: Seconds before the end of a part from which on nothing is begun.
GRACE = 10.
#: Backbone -> inputs of one step, as the figures to reach name them.
BATCHES = dict(vit=64, videomae=8, video_swin=4)
#: Methods that are timed, where the backbone carries them.
TIMED = ('LoRA', 'AdaptFormer', 'VPT', 'APT', 'PATT', 'PATT + AdaptFormer', 'SSF', 'SynQT')


#: Method -> label -> options of further forms that are timed.
MORE: Dict[str, Dict[str, Any]] = dict(LoRA=dict(light=dict(memory='light'), lightest=dict(memory='lightest'),
                                            **{'base in bf16': dict(base_dtype='bf16')}))
#: Seconds that one check may take, twice as many one run.
LIMIT = 60.
#: Exit status of a process whose device is of no more use to it.
SPOILED = 77
#: Figures that no part measures.
NOT_MEASURED = ("share of the card's product rate", 'SynQT on cached features',
                'operations over those of full fine-tuning', 'steps through the Runner, with data loading',
                'steps in fp32 and fp16', 'compiled and captured steps')


def told(error: Exception) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {text[0][:300]}'


Job = Tuple[List[str], Path]


def noted(path: Optional[str], entry: Dict[str, Any]) -> None:
    """Append an entry to a file of lines, from which it is read even if this process dies later."""
    if path:
        with open(path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(entry) + '\n')


def gathered(path: Path, limit: float = LIMIT) -> List[Dict[str, Any]]:
    """The last state of every entry of a file of lines; what began and did not end has failed."""
    found: Dict[Tuple[str, str], Dict[str, Any]] = {}
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else []:
        if line.endswith('}'):  # a kill may cut the last one
            entry = json.loads(line)
            found[entry['row'], entry['check']] = entry
    why = f'did not end: it took more than {limit:.0f} s, its process died, or the time was over'
    return [dict(e, state='failed', message=why) if e['state'] == 'running' else e for e in found.values()]


def attempt(entry: Dict[str, Any], act: Callable[[], Dict[str, Any]], note: Optional[str]) -> bool:
    """Run ``act`` for an entry, which takes what it returns, or its error. False: the device is of no more use to this
    process. With ``note`` the process dies, with a traceback, of an ``act`` that hangs."""
    if note:
        noted(note, dict(entry, state='running'))
        faulthandler.dump_traceback_later(LIMIT, exit=True)
    try:
        entry.update(act())
    except Exception as error:  # one that fails must not hide the others
        entry.update(state='failed', message=told(error))
    finally:
        faulthandler.cancel_dump_traceback_later()
    noted(note, entry)
    return not spoiled(entry.get('message', ''))


def spoiled(message: str) -> bool:
    """Whether after an error every later call on the device fails too."""
    return 'CUDA error' in message or 'capturing' in message or 'inside graph capture' in message


def methods(device: str, names: Sequence[str], until: float, note: Optional[str] = None) -> List[Dict[str, Any]]:
    """Run the checks of some rows until a time, in seconds since the epoch; graphs last, they take longest.

    Args:
        device: 'cuda', 'cpu' or 'meta'.
        names: Rows.
        until: When to begin no more.
        note: File that takes every entry as soon as it is known, and names those that are not repeated.
    """
    found: List[Dict[str, Any]] = []
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    done = {(e['row'], e['check']) for e in gathered(Path(note))} if note else set()
    for row, check in planned(device, names):
        entry: Dict[str, Any] = dict(row=row, check=check, state='not reached')
        if (row, check) in done:
            continue
        found.append(entry)
        if time.time() < until and not attempt(entry, partial(_checked, row, check, device), note):
            sys.exit(SPOILED)
    return found


def _checked(row: str, check: str, device: str) -> Dict[str, Any]:
    return dict(state='passed', figure=CHECKS[check](*ROWS[row], device))


def planned(device: str, names: Sequence[str]) -> List[Tuple[str, str]]:
    """Rows and checks in the order in which they run."""
    late = ('graph', 'captured')
    return [(row, check) for last_ones in (False, True) for row in names for check in CHECKS
            if (check in late) is last_ones and applies(check, row, device)]


# -- processes --------------------------------------------------------------------------------------------------------


class Watch:
    """Starts processes, starts again those that die, and ends them, and what they started, when the time is over."""

    def __init__(self, save: Callable[[], None]) -> None:
        self.save, self.alive = save, set()  # type: Callable[[], None], Set[subprocess.Popen]

    def run(self, jobs: Sequence[Job], until: float, every: float = 10., **env: str) -> None:
        """Run all jobs, a command and the file of its entries each; ``save()`` is called now and then."""
        size = {id(job): -1 for job in jobs}
        waiting = [(job, self._start(job, env)) for job in jobs]
        saved = time.time()
        while waiting and time.time() < until:
            time.sleep(0.1)
            for job, process in [w for w in waiting if w[1].poll() is not None]:
                waiting.remove((job, process))
                self.end([process])
                now = job[1].stat().st_size if job[1].exists() else 0
                if _at_its_end(job, process.returncode):
                    continue
                if now > max(size[id(job)], 0):  # it got on: the rest is tried
                    size[id(job)] = now
                    waiting.append((job, self._start(job, env)))
                else:
                    noted(str(job[1]), dict(row='process', check=job[1].stem, state='failed', message=(
                        f'the process ended with status {process.returncode}; its output says why')))
            if time.time() > saved + every:
                self.save()
                saved = time.time()
        self.end([process for _, process in waiting])

    def _start(self, job: Job, env: Dict[str, str]) -> subprocess.Popen:
        process = subprocess.Popen(job[0], cwd=ROOT, env=dict(os.environ, **env), start_new_session=True)
        self.alive.add(process)
        return process

    def end(self, processes: Iterable[subprocess.Popen], patience: float = 5.) -> None:
        """End processes with all of their groups: torchrun ends its own when asked, the rest is killed."""
        processes = list(processes)
        for number, until in ((signal.SIGTERM, time.time() + patience), (signal.SIGKILL, time.time() + 2 * patience)):
            while any(_signal(p, number if p.poll() is None else signal.SIGKILL) for p in processes):
                if time.time() > until:
                    break
                time.sleep(0.1)
        self.alive -= set(processes)


def _at_its_end(job: Job, status: int) -> bool:
    """Whether a process did all it had to; pytest says 1 where tests failed and 5 where none were left."""
    begun = any(e['state'] == 'failed' and e['message'].startswith('did not end') for e in gathered(job[1]))
    return status == 0 or status in (1, 5) and 'pytest' in job[0] and not (begun and status == 1)


def _signal(process: subprocess.Popen, number: int) -> bool:
    """Whether there was somebody in the group of a process to send a signal to."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def words_of(part: str, args: argparse.Namespace, path: Path, until: float, rows: Sequence[str] = ()) -> Job:
    """The command of a part in a process of its own."""
    words = ['--part', part, '--note', str(path), '--until', str(until), '--device', args.device, '--size', args.size,
             '--steps', str(args.steps)]
    return [sys.executable, __file__, *words, *(['--rows', *rows] if rows else [])], path


def runs_job(args: argparse.Namespace, path: Path) -> Job:
    """The tests of runs, by pytest; this file is the plugin that notes how they end."""
    return [sys.executable, '-m', 'pytest', 'tests/gpu/test_runs.py', '-q', '-m', 'gpu or not gpu',
            '-p', 'no:cacheprovider', '-p', 'gpu_check'], path


def pytest_collection_modifyitems(config: Any, items: List[Any]) -> None:
    """Tests that were begun by a process that died are not repeated."""
    known = {e['check']: e['state'] for e in gathered(Path(os.environ['MMPETL_NOTE']))}
    items[:] = [item for item in items if known.get(item.name, 'not reached') == 'not reached']
    for item in items:
        if item.name not in known:  # until it begins
            noted(os.environ['MMPETL_NOTE'], dict(row='run', check=item.name, state='not reached'))


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    """A test begins."""
    noted(os.environ['MMPETL_NOTE'], dict(row='run', check=nodeid.split('::')[-1], state='running'))
    faulthandler.dump_traceback_later(2 * LIMIT, exit=True)


def pytest_runtest_logreport(report: Any) -> None:
    """A test has ended, or one of its fixtures has failed."""
    if report.when != 'call' and report.outcome == 'passed':
        return
    entry = dict(row='run', check=report.nodeid.split('::')[-1], figure=report.duration, state=report.outcome)
    if report.outcome != 'passed':
        crash = getattr(report.longrepr, 'reprcrash', None)
        lines = str(crash.message if crash else report.longrepr).strip().splitlines() or ['']
        entry['message'] = lines[0][:300]
    noted(os.environ['MMPETL_NOTE'], entry)


def pytest_runtest_logfinish(nodeid: str, location: Any) -> None:
    """A test is over; a device that is of no more use to this process ends it."""
    faulthandler.cancel_dump_traceback_later()
    last_one = next((e for e in gathered(Path(os.environ['MMPETL_NOTE'])) if e['check'] == nodeid.split('::')[-1]), {})
    if spoiled(last_one.get('message', '')):
        os._exit(SPOILED)


# -- speed ------------------------------------------------------------------------------------------------------------


def _peers(backbone: str) -> Dict[str, Callable[[], torch.nn.Module]]:
    """What builds full fine-tuning of timm's model and peft's LoRA, where they are installed."""
    found: Dict[str, Callable[[], torch.nn.Module]] = {}
    if backbone != 'vit':
        return found
    from benchmark_peers import ClassToken, missing, peft_model
    if missing('timm') is None:
        import timm
        found['timm, full'] = lambda: timm.create_model('vit_base_patch16_224', num_classes=0)
    if missing('peft', 'transformers') is None:
        found['peft, LoRA on q and v'] = lambda: ClassToken(peft_model())
    return found


def speed(args: argparse.Namespace, until: float, note: Optional[str] = None) -> List[Dict[str, Any]]:
    """Median milliseconds of a training step under bf16 autocast, peak memory and inputs per second; ``note`` as of
    :func:`methods`."""
    done = {(e['row'], e['check']) for e in gathered(Path(note))} if note else set()
    found: List[Dict[str, Any]] = []
    for name, batch in BATCHES.items():
        batch = 2 if args.size == 'tiny' else batch
        beside = cache(partial(_beside, name, batch, args))
        for key, make in timed(name, args.size).items():
            entry: Dict[str, Any] = dict(row=name, check=key, batch=batch, state='not reached')
            if (name, key) in done:
                continue
            found.append(entry)
            if time.time() > until:
                noted(note, entry)
            elif not attempt(entry, partial(_time, make, beside, args), note):
                sys.exit(SPOILED)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return found


def _beside(name: str, batch: int, args: argparse.Namespace) -> Tuple[torch.nn.Module, torch.Tensor]:
    """The model whose frozen parameters all share, and their input."""
    from cases import BACKBONE
    shape = SHAPES[name] if args.size == 'base' else BACKBONE[name].shape
    return (build(BACKBONE[name], dict(tune=['*']), args.size).to(args.device),
            torch.randn(batch, *shape, device=args.device))


def timed(name: str, size: str) -> Dict[str, Callable[[], Optional[torch.nn.Module]]]:
    """What is timed on a backbone: label -> what builds it; None where there is nothing to build."""
    from cases import BACKBONE, METHODS
    backbone = BACKBONE[name]
    models: Dict[str, Any] = {'full': lambda: build(backbone, dict(tune=['*']), size)}
    if size == 'base':
        models.update(_peers(name))
    for case in METHODS:
        if case.name in TIMED and name in case.on:
            row = dict(petl=case.real, tiny=case.petl)
            models[case.name] = lambda row=row: build(backbone, row, size)
            models[f'{case.name}, plain'] = lambda row=row: plain(build(backbone, row, size))
            if case.name in MORE:
                for label, options in MORE[case.name].items():
                    models[f'{case.name}, {label}'] = lambda row=row, o=options: build(backbone, row, size, **o)
    return models


def _time(make: Any, beside: Any, args: argparse.Namespace) -> Dict[str, Any]:
    full, x = beside()
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
    names = [n for n in dict.fromkeys([*CHECKS, *(e['check'] for e in result['methods'])])
             if any(e['check'] == n for e in result['methods'])]
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
    lines += ['', '## Not measured', '', *(f'* {what}' for what in not_measured(result))]
    return '\n'.join(lines) + '\n'


def not_measured(result: Dict[str, Any]) -> List[str]:
    """What this check has no figure of: what it never measures, what is not installed, what was not reached."""
    counts = {part: sum(e['state'] == 'not reached' for e in result[part]) for part in PARTS}
    late = [f'{part}: {count} not reached' for part, count in counts.items() if count]
    left = [f'run {e["check"]}: {e.get("message", "skipped")}' for e in result['runs'] if e['state'] == 'skipped']
    peers = [f'{name}: not installed' for name in ('timm', 'peft', 'transformers', 'deepspeed')
             if importlib.util.find_spec(name) is None]
    return [*NOT_MEASURED, *peers, *left, *late]


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
    parser.add_argument('--part', choices=['methods', 'speed'], help=argparse.SUPPRESS)
    parser.add_argument('--note', help=argparse.SUPPRESS)
    parser.add_argument('--until', type=float, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Check; 1 if something failed."""
    args = parse(words)
    if args.part:
        child(args)
        return 0
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise SystemExit('torch sees no GPU: name --device cpu or --device meta')
    if args.few:
        args.rows, args.size, args.processes, args.steps = list(FEW), 'tiny', 1, 1
        args.skip = [*args.skip, 'runs']
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the table is written on the way out
    out, began = Path(args.out), time.time()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob('*.jsonl'):
        old.unlink()
    result = dict(hardware=hardware(), minutes=args.minutes)

    def save() -> None:
        found = collected(args, out)
        result.update(found, seconds=time.time() - began)
        (out / 'gpu_check.json').write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
        (out / 'gpu_check.md').write_text(markdown(result), encoding='utf-8')

    watch = Watch(save)
    try:
        everything(args, out, began, watch)
    finally:
        watch.end(list(watch.alive))
        save()
        signal.signal(signal.SIGTERM, handler)
    print(markdown(result))
    return int(any(e['state'] == 'failed' for part in PARTS for e in result[part]))


def child(args: argparse.Namespace) -> None:
    """One part, in a process of its own."""
    if args.part == 'methods':
        methods(args.device, args.rows, args.until, args.note)
    else:
        if args.device == 'cuda':
            torch.set_num_threads(8)  # building large models takes longer than their steps
        speed(args, args.until, args.note)


def everything(args: argparse.Namespace, out: Path, began: float, watch: Watch) -> None:
    """All parts one after another; each is ended when its share of the time is over."""
    total = 60 * args.minutes
    skip = skipped(args)
    if 'methods' not in skip:
        until = began + SHARES[0] * total
        workers = max(1, min(args.processes, len(args.rows)))
        watch.run([words_of('methods', args, out / f'methods{i}.jsonl', until - GRACE, args.rows[i::workers])
                   for i in range(workers)], until)
    if 'runs' not in skip:
        path = out / 'runs.jsonl'
        if importlib.util.find_spec('pytest') is None:
            noted(str(path), dict(row='run', check='all', state='failed', message='pytest is not installed'))
        else:
            watch.run([runs_job(args, path)], time.time() + SHARES[1] * total, MMPETL_DEVICE=args.device,
                      MMPETL_NOTE=str(path.resolve()), PYTHONPATH=os.pathsep.join(
                          [str(Path(__file__).resolve().parent), os.environ.get('PYTHONPATH', '')]))
    if 'speed' not in skip:
        until = began + 0.97 * total
        watch.run([words_of('speed', args, out / 'speed.jsonl', until - GRACE)], until)


def skipped(args: argparse.Namespace) -> Set[str]:
    """Parts that do not run: those that the command line names, and on the meta device those that need numbers."""
    return {*args.skip, *(('runs', 'speed') if args.device == 'meta' else ())}


def collected(args: argparse.Namespace, out: Path) -> Dict[str, List[Dict[str, Any]]]:
    """What all parts have noted so far; checks of methods that nobody began are not reached."""
    found = {part: [e for path in sorted(out.glob(f'{part}*.jsonl')) for e in gathered(path)] for part in PARTS}
    if 'methods' not in skipped(args):
        begun = {(e['row'], e['check']) for e in found['methods']}
        found['methods'] += [dict(row=row, check=check, state='not reached')
                             for row, check in planned(args.device, args.rows) if (row, check) not in begun]
    return found


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
