# SPDX-License-Identifier: Apache-2.0
"""The table of cost targets, every figure measured in the run that prints it: python benchmarks/benchmark.py --targets
[--timed-batch 8] [--steps 3].

Kept bytes are counted at a batch of 8 (video: 1) on the meta device; times are those of ``--timed-batch``. Where a
target speaks of full fine-tuning without naming its attention, it is ours, in a fused kernel, which is the harder
comparison.
"""

import argparse
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import torch
from benchmark_costs import MIB, build, device, flops, hardware, interleave, ratio, seconds, share_trunk, train_step
from benchmark_peers import lora_against_peft, missing, startup, trunk_times
from benchmark_plain import PlainKAdaptation, plain
from benchmark_report import print_table, spread
from torch import nn

from mmpetl.costs.memory import on_meta, saved_bytes
from mmpetl.weights import write_json

IMAGE, CLIP, LONG_CLIP = (3, 224, 224), (3, 16, 224, 224), (3, 32, 224, 224)
FULL = dict(tune=['*'])
SETTINGS = ('standard', 'light', 'lightest')
Row = Dict[str, Any]


def model_of(backbone: str, petl: Any, memory: str = 'standard', **options: Any) -> nn.Module:
    """Base-size backbone in train mode; ``petl``: one method config, a list, or :data:`FULL`."""
    from cases import BACKBONE
    row = petl if petl is FULL else dict(petl=[petl] if isinstance(petl, dict) else petl)
    return build(BACKBONE[backbone], row, memory=memory, **options)


def kept(backbone: str, petl: Any, shape: Tuple[int, ...], batch: int = 8) -> Dict[str, float]:
    """Bytes per input that a step keeps: in every memory setting and, as 'plain', in the textbook form."""
    found: Dict[str, float] = {}
    with on_meta():
        for memory in (*SETTINGS, 'plain'):
            model: Any = model_of(backbone, petl, 'standard' if memory == 'plain' else memory)
            model = plain(model).train() if memory == 'plain' else model
            found[memory] = saved_bytes(model, torch.empty(batch, *shape)) / batch
    return found


def row(work: str,
        limit: float,
        value: Any,
        form: str = '.3f',
        unit: str = '',
        times: Any = None,
        note: str = '') -> Row:
    """One row of the table.

    Args:
        work: What is measured.
        limit: Target; met when a value is at most that.
        value: Figure, or figures by memory setting.
        form: Format of the figures.
        unit: Unit behind them.
        times: Median, smallest and largest round, shown in place of the figure of the standard setting.
        note: Remark.
    """
    values = value if isinstance(value, dict) else dict(standard=value)
    by = [name for name in SETTINGS if name in values and values[name] <= limit]
    met = 'missed' if not by else 'met' if by[0] == 'standard' else f'met by {by[0]}'
    shown = {name: f'{values[name]:{form}}{unit}' if name in values else '–' for name in SETTINGS}
    if times:
        shown['standard'] = spread(times)
    return dict(work=work, target=f'≤ {limit:.4g}{unit}', **shown, met=met, note=note)


def over(bytes_: Dict[str, float], whole: float) -> Dict[str, float]:
    """All figures as parts of ``whole``."""
    return {name: value / whole for name, value in bytes_.items()}


# -- kept bytes -------------------------------------------------------------------------------------------------------


def memory_rows() -> List[Row]:
    """Targets on kept bytes."""
    full = kept('vit', FULL, IMAGE)
    explicit, fused = full['plain'], full['standard']
    note = f'explicit full: {explicit * 8 / MIB:.1f} MiB for a batch of 8 without head and loss'
    found = [row("SynQT P=16, memory='light', kept / full with explicit attention", 0.056,
                 kept('vit', dict(type='SynQT', num_tokens=16), IMAGE)['light'] / explicit, '.4f', note=note)]
    vpt = over(kept('vit', dict(type='VPT', num_tokens=50), IMAGE), MIB)
    found.append(row('VPT-deep P=50, kept per image', 80, vpt, '.1f', ' MiB', note=f'plain {vpt["plain"]:.1f} MiB'))
    methods = {
        'SSF': (1., dict(type='SSF')),
        'FacT-TT 16': (1., dict(type='FacT', kind='tt', rank=16)),
        'FacT-TK 32': (1., dict(type='FacT', kind='tk', rank=32)),
        'AdaptFormer 64': (0.55, dict(type='AdaptFormer', mid_dims=64)),
        'Adapter 64': (0.55, dict(type='Adapter', mid_dims=64, kind='pfeiffer')),
        'Compacter 64': (0.55, dict(type='Compacter'))
    }
    for name, (limit, petl) in methods.items():
        bytes_ = kept('vit', petl, IMAGE)
        note = f'of explicit full {bytes_["standard"] / explicit:.3f}, plain form {bytes_["plain"] / explicit:.3f}'
        found.append(row(f'{name}, kept / full', limit, over(bytes_, fused), note=note))
    video = kept('videomae', FULL, CLIP, 1)['plain']
    apt = kept('videomae', dict(type='APT', num_tokens=400), CLIP, 1)
    found.append(row('APT T=400 on VideoMAE-B, N=1568, kept / full with explicit attention', 0.18, over(apt, video)))
    pair = kept('video_swin', [dict(type='PATT', mid_dims=128), dict(type='AdaptFormer', mid_dims=64)], LONG_CLIP, 1)
    found.append(
        row('PATT + AdaptFormer on Video Swin-B, 32 frames, kept / published form', 0.6, over(pair, pair['plain'])))
    return found + below_the_first_block()


def below_the_first_block() -> List[Row]:
    """LoRA in the upper half of the blocks against all blocks."""
    halves, work = [], []
    for layers in (None, '6-11'):
        petl = dict(type='LoRA', rank=8, layers=layers)
        with on_meta():
            model = model_of('vit', petl)
            halves.append(saved_bytes(model, torch.empty(8, *IMAGE)))
            work.append(flops(model, torch.empty(1, *IMAGE))[1])
    return [row('LoRA in blocks 6-11 / in all, kept', 0.5, halves[1] / halves[0]),
            row('LoRA in blocks 6-11 / in all, operations of the backward pass', 0.5, work[1] / work[0])]


# -- time -------------------------------------------------------------------------------------------------------------


def cached_rows(steps: int) -> List[Row]:
    """SynQT on cached features."""
    from cached_ratio import METHODS, measure
    args = argparse.Namespace(arch='base', img_size=224, batch=8, images=8, steps=steps)
    found = []
    for tokens, limit in ((16, 5.5), (4, 12.)):
        taken = measure(METHODS[f'SynQT, P={tokens}'], args, torch.device(device()))
        low, high = taken['spread']
        note = f'{taken["ratio"]:.1f} times faster; the frozen weights, keys and values are read all the same'
        found.append(row(f'SynQT P={tokens}, step with cached features / without', 1 / limit, 1 / taken['ratio'],
                         times=dict(median=1 / taken['ratio'], low=1 / high, high=1 / low), note=note))
    return found


def prompt_rows(batch: int, rounds: int) -> List[Row]:
    """Times of VPT and E2VPT, and what pruning saves."""
    e2vpt = dict(type='E2VPT', num_tokens=50, num_kv_tokens=5)
    x = torch.randn(batch, *IMAGE, device=device())
    models = {
        'vpt': model_of('vit', dict(type='VPT', num_tokens=50)),
        'e2vpt': model_of('vit', e2vpt),
        'pruned': pruned(e2vpt)
    }
    share_trunk(list(models.values()))
    models.update({f'{name} plain': plain(model).train() for name, model in models.items()})
    for model in models.values():
        model.to(device())
    took = interleave({name: (lambda m=m: train_step(m, x)) for name, m in models.items()}, rounds, 'prompts')
    vpt = ratio(took['vpt'], took['vpt plain'])
    found = [row('VPT-deep P=50, step / plain form', 0.8, vpt['median'], times=vpt)]
    bytes_ = {}
    for name, make in (('e2vpt', lambda: model_of('vit', e2vpt)), ('pruned', lambda: pruned(e2vpt))):
        with on_meta():
            meta = make()
            bytes_[name] = saved_bytes(meta, torch.empty(8, *IMAGE))
            bytes_[f'{name} plain'] = saved_bytes(plain(meta).train(), torch.empty(8, *IMAGE))
    extra = 'unpruned prompts are keys and values only, so little is left to save'
    for form, ours, before in (('our form / our unpruned', 'pruned', 'e2vpt'), ('our form / plain unpruned', 'pruned',
                                                                                'e2vpt plain'),
                               ('prompts in the stream / the same unpruned', 'pruned plain', 'e2vpt plain')):
        times = ratio(took[ours], took[before])
        note = extra if before == 'e2vpt' else ''
        found.append(
            row(f'E2VPT P=50 without half its tokens, kept, {form}', 0.95, bytes_[ours] / bytes_[before], note=note))
        found.append(
            row(f'E2VPT P=50 without half its tokens, step, {form}', 0.95, times['median'], times=times, note=note))
    return found


def pruned(petl: Dict[str, Any]) -> nn.Module:
    """E2VPT after half of the tokens were taken out."""
    model = model_of('vit', petl)
    method = model.petl['e2vpt']
    with torch.device('cpu'):
        keep = torch.arange(method.num_tokens) % 2 == 0
        segments = torch.ones(method.num_tokens, method.segments, dtype=torch.bool)
    if not method.token_mask.is_meta:
        method.prune(keep, segments)
    else:  # the same shapes without numbers
        rows = petl['num_tokens'] // 2
        for i in method.pruned_layers:
            method.prompts[i].data = method.prompts[i].data.new_empty(rows, method.prompts[i].shape[1])
        method.kept = method.kept[:rows]
    model.petl.refresh()
    return model


def kronecker_rows(rounds: int) -> List[Row]:
    """KAdaptation's update of one op, batch 8: ours over the materialised product; fastest calls, since both last
    milliseconds."""
    from mmpetl.backbones.attach import build_method
    from mmpetl.sites import BlockSpec
    found = []
    method = build_method(dict(type='KAdaptation', bias=None), [BlockSpec(0, 0, 768, 12, 3072, 1,
                                                                          (14, 14))]).to(device())
    textbook = PlainKAdaptation(method)
    with torch.no_grad():
        for p in method.parameters():
            p.uniform_(-1, 1)
    for tokens, limit in ((197, 60), (50, 200)):
        x = torch.randn(8, tokens, 768, device=device())
        none = torch.zeros_like(x)  # what the update is added to
        ours, plain_ = [], []
        with torch.no_grad():
            for _ in range(rounds):
                plain_.append(seconds(lambda x=x, n=none: textbook.linear(0, 'q', x, n)))
                ours += [seconds(lambda x=x, n=none: method.on_linear(0, 'q', x, n)) for _ in range(10)]
        work = f'KAdaptation, forward of the update, N={tokens}, / Kronecker products formed'
        dense, code = 768 * 768, 2 * 768 * method.phm_dim
        work_ratio = (method.phm_dim * dense + 8 * tokens * dense) / (code + 8 * tokens * code)
        note = (
            f'{min(plain_) / min(ours):.0f} times faster (fastest of {len(ours)} and {len(plain_)} calls), with '
            f'{work_ratio:.0f} times '
            'fewer multiply-adds; the rest is memory that is not touched, which counts less the faster the products are'
        )
        found.append(row(work, 1 / limit, min(ours) / min(plain_), '.4f', note=note))
    return found


def peer_rows(batch: int, rounds: int) -> List[Row]:
    """peft, upstream trunks, start of a process."""
    found = []
    if missing('peft', 'transformers'):
        print(f'peft LoRA: {missing("peft", "transformers")}')
    else:
        lora = lora_against_peft(batch, rounds)
        names, times = dict(standard='ours', light='ours, light'), lora['time']
        medians = {memory: times[name]['median'] for memory, name in names.items()}
        found.append(row('LoRA q, v, rank 8, step / peft', 0.9, medians, times=times['ours']))
        found.append(
            row('LoRA q, v, rank 8, kept / peft', 1., {
                m: lora['kept'][n] / lora['kept']['peft']
                for m, n in names.items()
            }))
    times = trunk_times('mmpretrain ViT-B/16', batch, rounds)
    for key, work in (('inference: empty', 'no methods, inference'), ('inference: merged', 'merged LoRA, inference'),
                      ('full: empty', 'no methods, full fine-tuning')):
        note = 'the same weights; below 1 is faster than upstream'
        found.append(row(f'{work} / upstream ViT-B', 1.03, times[key]['median'], times=times[key], note=note))
    start = startup(rounds)['added']
    found.append(row('import, build ViT-B, attach; over upstream alone', 1., start['median'], unit=' s', times=start))
    return found


# -- command ----------------------------------------------------------------------------------------------------------


def run_targets(folder: Path, batch: int, rounds: int) -> None:
    """Measure, print, write targets.json."""
    parts: List[Callable[[], List[Row]]] = [
        memory_rows, lambda: kronecker_rows(max(rounds, 7)), lambda: cached_rows(rounds),
        lambda: prompt_rows(batch, rounds), lambda: peer_rows(batch, rounds)
    ]
    rows = [r for part in parts for r in part()]
    header = ['work', 'target', *SETTINGS, 'met', 'note']
    cells = [[r[key] for key in header] for r in rows]
    print_table('Targets', header, cells)
    missed = sum(r['met'] == 'missed' for r in rows)
    print(f'{len(rows) - missed} of {len(rows)} met')
    write_json(
        folder / 'targets.json',
        dict(
            hardware=hardware(),
            settings=f'fp32, kept bytes at batch 8 (video 1), times at batch {batch} in {rounds} rounds',
            tables=[dict(header=header, rows=cells)]))
    print(f'Written: {folder / "targets.json"}')
