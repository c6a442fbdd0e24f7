# SPDX-License-Identifier: Apache-2.0
r"""Beside the methods' published code, out of checkouts that you have: nothing of it is shipped here::

    python benchmarks/benchmark_published.py --vpt ~/vpt --e2vpt ~/E2VPT --synqt ~/SynQT --pevit ~/PEViT \
        --packages ~/old

``--packages`` is a folder of what that code needs and this library does not, kept apart from what is installed:
``pip install --no-deps --target ~/old timm==0.4.12 ml_collections absl-py``. Rows without a folder are left out; that
of peft needs peft and transformers.

First the outputs and gradients of both for the same weights, in evaluation mode; where they differ, the row is not
timed. Then training steps (forward, loss, backward, AdamW over what trains) of ours and of theirs in turns, in float32;
with ``--full`` of full fine-tuning too. Beside them kept bytes, operations and kernels of a step. Writes
published.json, which keeps rows that an earlier run measured in the same way; ``benchmark.py --write-docs`` puts it on
the page.
"""

import argparse
import contextlib
import io
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import torch
from benchmark_costs import MIB, ROOT, device, flops, hardware, interleave, last, ratio, results_folder
from benchmark_peers import missing
from benchmark_report import number, print_table, spread
from published_models import PUBLISHED, Published, State, without_gpu
from torch import Tensor, nn

from mmpetl.costs.memory import saved_bytes
from mmpetl.registry import METHODS, MODELS
from mmpetl.weights import write_json
from mmpetl.weights.rename import join_thirds, relabel

#: Largest difference over the largest value, below which outputs and gradients are the same: PEViT's norms compute in
#: float32 whatever comes in.
SAME = 1e-4


def published(case: Published, folders: Dict[str, Path], packages: Optional[Path]) -> nn.Module:
    """The published model with its frozen parameters frozen; parameters that start at zero are drawn, so that nothing
    compares by vanishing.

    Raises:
        SystemExit: If the file is not in the folder, or needs a package that is not there.
    """
    folder = folders.get(case.flag, ROOT)
    if case.file and not (folder / case.file).is_file():
        raise SystemExit(f'--{case.flag} {folder}: no {case.file} in it; give a checkout of '
                         f'github.com/{case.repository}')
    torch.manual_seed(0)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some print every parameter
            model = case.build(folder, packages)
    except ImportError as error:
        raise SystemExit(f'--{case.flag} {folder}: {error}; --packages names the folder of what that code needs, see '
                         f'--help') from error
    for name, p in model.named_parameters():
        p.requires_grad_(case.trains(name))
        if not p.any():
            nn.init.normal_(p, std=0.5)
    return model


def ours(case: Published, weights: State, petl: Dict[str, Any], tune: str = '*') -> nn.Module:
    """Our model of the size of the published one, with its weights; without a method, ``tune`` trains."""
    depth = 1 + max(int(key.split('.')[1]) for key in weights if key.startswith('layers.'))
    dims, patch = weights['pos_embed'].shape[-1], weights['patch_embed.projection.weight'].shape[-1]
    side = round((weights['pos_embed'].shape[-2] - 1)**0.5)
    arch = dict(embed_dims=dims, num_layers=depth, num_heads=max(1, dims // 64),
                feedforward_channels=len(weights['layers.0.ffn.layers.0.0.weight']))
    from cases import BACKBONE
    tuned = dict(petl=[petl]) if petl else dict(tune=[tune])
    config = dict(arch=arch, img_size=side * patch, patch_size=patch, **tuned)
    model = MODELS.build({'type': BACKBONE[case.backbone].type, **config})
    fits = {key: tensor.reshape(model.state_dict()[key].shape) for key, tensor in weights.items()}
    found = model.load_state_dict(fits, strict=False)
    lacking = [key for key in found.missing_keys if not key.startswith('petl.')]
    if lacking or found.unexpected_keys:
        raise SystemExit(f'{case.name}: weights do not fit: {[*lacking, *found.unexpected_keys][:3]}')
    return model


def here(case: Published, values: State) -> Tuple[State, State]:
    """Tensors by their published names -> the frozen ones by our names, and those of the method."""
    known = {key: t for key, t in values.items() if any(re.fullmatch(rule, key) for rule, _ in case.names)}
    return join_thirds({key: t for key, t in relabel(known, case.names).items() if key[0] != '+'}), case.method(values)


def both(case: Published, theirs: nn.Module, petl: Dict[str, Any]) -> nn.Module:
    """Our model with the weights of theirs, the method's included."""
    weights, own = here(case, {name: p.detach().clone() for name, p in theirs.named_parameters()})
    model = ours(case, weights, petl)
    left = next(iter(model.petl.values())).load_state_dict(own, strict=False)
    # What starts at the frozen norm is kept as an offset here, and untrained masks are buffers of ones.
    lacking = [key for key in left.missing_keys if not key.endswith(('_offset', '_mask'))]
    if lacking or left.unexpected_keys:
        raise SystemExit(f'{case.name}: parameters do not fit: {[*lacking, *left.unexpected_keys][:3]}')
    return model


def largest(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def differences(case: Published, theirs: nn.Module, x: Tensor) -> Tuple[float, float]:
    """Of the outputs, and of the gradients of everything that trains in both, in evaluation mode, in float64 where the
    published code can."""
    model, outputs = both(case, theirs, case.checked or case.petl), []
    for each in (model, theirs):
        each.to(case.checked_in)
        each.eval()
        outputs.append(last(each(x.to(case.checked_in))))
        outputs[-1].square().mean().backward()
    grads = here(case, {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})[1]
    trained = dict(next(iter(model.petl.values())).named_parameters())
    own = {name: p.grad for name, p in trained.items() if p.grad is not None and name in grads}
    if not own:
        raise SystemExit(f'{case.name}: no gradient of both to compare')
    # A bias of keys under a softmax has a gradient of rounding alone.
    most = max(float(g.abs().max()) for g in grads.values())
    own = {name: g for name, g in own.items() if grads[name].abs().max() > 1e-12 * most}
    theirs.float()  # as before: its numbers came from float32
    theirs.zero_grad(set_to_none=True)
    return largest(outputs[0].detach(), outputs[1].detach()), max(largest(own[name], grads[name]) for name in own)


def step(model: nn.Module, x: Tensor, optimizer: Optional[torch.optim.Optimizer]) -> None:
    """Forward, loss, backward, optimizer; the forward pass alone where nothing trains."""
    loss = last(model(x)).square().mean()
    if optimizer is None:
        return
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def base_alone(case: Published, weights: State) -> nn.Module:
    """Our frozen base by itself, as any form of the method runs it: a side method's gives features, through any other a
    gradient passes, to the position embedding, which is a little further than a method inside the first block needs.
    """
    model = ours(case, weights, {}, 'pos_embed').to(device())
    model.train()
    if 'side' in METHODS.get(case.petl['type']).points():
        model.requires_grad_(False)
    return model


def alone() -> bool:
    """Whether a step is timed by processor time: of one thread, what it takes alone, also on a shared machine."""
    return device() == 'cpu' and torch.get_num_threads() == 1


def times(case: Published, models: Dict[str, nn.Module], x: Tensor, rounds: int) -> Dict[str, List[float]]:
    """Seconds of training steps of all models, taken in turns."""
    runs = {}
    for name, model in models.items():
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-6) if trained else None
        runs[name] = lambda model=model, optimizer=optimizer: step(model, x, optimizer)
    return interleave(runs, rounds, f'{case.name}, batch {len(x)}', time.process_time if alone() else time.perf_counter)


def row_of(case: Published, folders: Dict[str, Path], args: argparse.Namespace) -> Dict[str, Any]:
    """Everything about one published model."""
    from kernels import of_model
    batches, rounds = args.batch, args.rounds
    theirs = published(case, folders, args.packages).to(device())
    images = next(p for p in theirs.parameters() if p.dim() == 4)
    weights, _ = here(case, {name: p.detach() for name, p in theirs.named_parameters()})
    size = round((weights['pos_embed'].shape[-2] - 1)**0.5) * images.shape[-1]
    x = torch.randn(max(batches), 3, size, size, device=device())
    found: Dict[str, Any] = dict(name=case.name, repository=case.repository, commit=case.commit, note=case.note)
    found['output'], found['gradient'] = differences(case, theirs, x[:2])
    models = dict(ours=ours(case, weights, case.petl), theirs=theirs)
    for name, model in models.items():
        model.to(device())
        model.train(not (case.stays_in_eval and name == 'theirs'))
    found['trained'] = {name: sum(p.numel() for p in m.parameters() if p.requires_grad) for name, m in models.items()}
    found['kept'] = {name: saved_bytes(m, x[:batches[0]]) / batches[0] for name, m in models.items()}
    found['operations'] = {name: sum(flops(m, x[:1])) for name, m in models.items()}
    found['kernels'] = {name: of_model(m, x[:1], last, half=False).total for name, m in models.items()}
    if max(found['output'], found['gradient']) > SAME:
        return found
    found['step'] = {}
    models['base'] = base_alone(case, weights)
    if args.full:
        models['full'] = ours(case, weights, {}).to(device())
        models['full'].train()
    for batch in batches:
        took = times(case, models, x[:batch], rounds)
        found['step'][str(batch)] = dict(of_theirs=ratio(took['ours'], took['theirs']),
                                         base_of_theirs=ratio(took['base'], took['theirs']))
        if 'full' in models:
            found['step'][str(batch)].update(of_full=ratio(took['ours'], took['full']),
                                             theirs_of_full=ratio(took['theirs'], took['full']))
            del models['full']  # the other batch sizes tell about theirs
    return found


def table(rows: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """The table of the page: ours over theirs."""
    batches = sorted({int(b) for row in rows for b in row.get('step', ())})
    base = any('base_of_theirs' in each for row in rows for each in row.get('step', {}).values())
    full = any('of_full' in each for row in rows for each in row.get('step', {}).values())
    header = ['', 'published', *(f'step, batch {b}' for b in batches), *(['base alone'] if base else []),
              *(['of full', 'theirs of full'] if full else []),
              'operations', 'kept', 'kept MiB', 'kernels', 'outputs differ by', 'gradients']
    cells = []
    for row in rows:
        timed = row.get('step', {})
        first = timed.get(str(min(batches, default=0)), {})
        of_full = [spread(first.get('of_full')), spread(first.get('theirs_of_full'))] if full else []
        cells.append([
            f'{row["name"]} ({row["note"]})' if row['note'] else row['name'],
            f'{row["repository"]} {row["commit"]}'.strip(),
            *(spread(timed.get(str(b), {}).get('of_theirs')) for b in batches),
            *([spread(first.get('base_of_theirs'))] if base else []),
            *of_full,
            f'{row["operations"]["ours"] / row["operations"]["theirs"]:.2f}',
            f'{row["kept"]["ours"] / row["kept"]["theirs"]:.3f}', number(row['kept']['ours'], '.1f', MIB),
            f'{row["kernels"]["ours"] / row["kernels"]["theirs"]:.2f} ({row["kernels"]["ours"]})',
            f'{row["output"]:.0e}', f'{row["gradient"]:.0e}'])
    return dict(title='Ours over theirs, ViT-B/16', header=header, rows=cells)


def joined(path: Path, rows: Sequence[Dict[str, Any]], about: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The rows, and those of an earlier run on the same machine in the same way, in the order of the table; batch sizes
    add up."""
    stored = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    same = all(stored.get(key) == value for key, value in about.items())
    found: Dict[str, Dict[str, Any]] = {}
    for row in [*(stored['rows'] if same else ()), *rows]:
        before = found.get(row['name'], {}).get('step', {})
        found[row['name']] = dict(row, step={**before, **row['step']}) if 'step' in row else row
    return [found[case.name] for case in PUBLISHED if case.name in found]


def chosen(args: argparse.Namespace) -> List[Published]:
    """Rows whose folders are given; says which are left out.

    Raises:
        SystemExit: If none is left, or a name is unknown.
    """
    names = [case.name for case in PUBLISHED]
    for name in args.only or ():
        if name not in names:
            raise SystemExit(f'--only {name!r}: unknown; known: {", ".join(names)}')
    found = []
    for case in (case for case in PUBLISHED if not args.only or case.name in args.only):
        lacking = missing('peft', 'transformers') if not case.flag else None if getattr(args, case.flag) else (
            f'left out: give --{case.flag}, a checkout of github.com/{case.repository}')
        if lacking:
            print(f'{case.name}: {lacking}')
        elif not case.flag:
            import peft
            found.append(replace(case, commit=peft.__version__))
        else:
            found.append(case)
    if not found:
        raise SystemExit('nothing to measure: give the folder of a checkout, see --help')
    return found


def main() -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, repository in {case.flag: case.repository for case in PUBLISHED if case.flag}.items():
        parser.add_argument(f'--{flag}', type=Path, help=f'folder of a checkout of github.com/{repository}')
    parser.add_argument('--packages', type=Path, help='folder of further packages for the published code')
    parser.add_argument('--only', nargs='+', metavar='ROW', help='some rows, by name')
    parser.add_argument('--batch', type=int, nargs='+', default=[2, 8])
    parser.add_argument('--rounds', type=int, default=7, help='timed rounds (default 7)')
    parser.add_argument('--full', action='store_true', help='full fine-tuning takes turns too, at the first batch size')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'benchmark')
    args = parser.parse_args()
    cases = chosen(args)
    folders = {case.flag: getattr(args, case.flag) for case in cases if case.flag}
    with without_gpu():
        rows = [row_of(case, folders, args) for case in cases]
    path = results_folder(args.out) / 'published.json'
    clock = ' (processor time)' if alone() else ''
    about = dict(hardware=hardware(), settings=(
        f'fp32, {args.rounds} timed rounds in turns{clock}, measured beside the published code, which is not shipped '
        'here (`benchmarks/benchmark_published.py`)'))
    rows = joined(path, rows, about)
    found = table(rows)
    print_table(found['title'], found['header'], found['rows'])
    write_json(path, dict(about, rows=rows, tables=[found]))
    print(f'Written: {path}')
    differing = [row['name'] for row in rows if max(row['output'], row['gradient']) > SAME]
    if differing:
        raise SystemExit(f'outputs or gradients differ, so not timed: {", ".join(differing)}')


if __name__ == '__main__':
    main()
