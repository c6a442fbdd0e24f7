"""The table of cost targets, every figure measured in the run that prints it: python tools/benchmark.py --targets [--batch 8] [--steps 3].

Kept bytes are counted at a batch of 8 (video: 1) on the meta device, whatever ``--batch`` says; times are those of ``--batch``. Where a
target speaks of full fine-tuning without naming its attention, it is ours, in a fused kernel, which is the harder comparison.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from benchmark_costs import MIB, build, device, flops, hardware, interleave, ratio, share_trunk, train_step
from benchmark_peers import lora_against_peft, missing, startup, trunk_times
from benchmark_plain import PlainKAdaptation, plain
from benchmark_report import print_table, spread
from torch import nn

from mmpetl.apis.memory import on_meta, saved_bytes
from mmpetl.weights import write_json

IMAGE, CLIP, LONG_CLIP = (3, 224, 224), (3, 16, 224, 224), (3, 32, 224, 224)
FULL = dict(tune=['*'])
Row = Dict[str, Any]


def model_of(backbone: str, petl: Any, light: bool = False, **options: Any) -> nn.Module:
    """Base-size backbone in train mode; ``petl``: one method config, a list, or :data:`FULL`."""
    from cases import BACKBONE
    row = petl if petl is FULL else dict(petl=[petl] if isinstance(petl, dict) else petl)
    return build(BACKBONE[backbone], row, light=light, **options)


def kept(backbone: str, petl: Any, shape: Tuple[int, ...], light: bool = False, textbook: bool = False, batch: int = 8) -> float:
    """Bytes per input that a step keeps."""
    with on_meta():
        model: Any = model_of(backbone, petl, light)
        if textbook:
            model = plain(model)
            model.train()
        return saved_bytes(model, torch.empty(batch, *shape)) / batch


def row(work: str, limit: float, value: float, light: Optional[float] = None, form: str = '.3f', unit: str = '', spread_of: Any = None,
        note: str = '') -> Row:
    """One row: met when the value, or that of the light form, is at most ``limit``."""
    met = 'met' if value <= limit else 'met by light' if light is not None and light <= limit else 'missed'
    measured = spread(spread_of) if spread_of else f'{value:{form}}{unit}'
    by_light = '–' if light is None else f'{light:{form}}{unit}'
    return dict(work=work, target=f'≤ {limit:.4g}{unit}', measured=measured, light=by_light, met=met, note=note)


# -- kept bytes ---------------------------------------------------------------------------------------------------------------------------


def memory_rows() -> List[Row]:
    """Targets on kept bytes."""
    explicit, fused = kept('vit', FULL, IMAGE, textbook=True), kept('vit', FULL, IMAGE)
    whole = f'explicit full: {explicit * 8 / MIB:.1f} MiB'
    found = [row('SynQT P=16, kept / full with explicit attention', 0.056, kept('vit', dict(type='SynQT', num_tokens=16), IMAGE) / explicit,
                 form='.4f', note=whole)]
    vpt = dict(type='VPT', num_tokens=50)
    value, light, reference = (kept('vit', vpt, IMAGE, **o) / MIB for o in ({}, dict(light=True), dict(textbook=True)))
    found.append(row('VPT-deep P=50, kept per image', 80, value, light, '.1f', ' MiB', note=f'plain {reference:.1f} MiB'))
    methods = {'SSF': dict(type='SSF'), 'FacT-TT': dict(type='FacT', kind='tt', rank=16), 'FacT-TK': dict(type='FacT', kind='tk', rank=32)}
    for name, petl in methods.items():
        value, light, reference = (kept('vit', petl, IMAGE, **o) for o in ({}, dict(light=True), dict(textbook=True)))
        note = f'plain {reference / explicit:.3f} of explicit full'
        found.append(row(f'{name}, kept / full', 1., value / fused, light / fused, note=note))
    small = {'AdaptFormer 64': dict(type='AdaptFormer', mid_dims=64), 'Adapter 64': dict(type='Adapter', mid_dims=64, kind='pfeiffer'),
             'Compacter 64': dict(type='Compacter')}
    for name, petl in small.items():
        value, light = kept('vit', petl, IMAGE), kept('vit', petl, IMAGE, light=True)
        found.append(row(f'{name}, kept / full', 0.55, value / fused, light / fused,
                         note=f'of explicit full {value / explicit:.3f}, light {light / explicit:.3f}'))
    full = kept('videomae', FULL, CLIP, textbook=True, batch=1)
    value, light = (kept('videomae', dict(type='APT', num_tokens=400), CLIP, light=o, batch=1) / full for o in (False, True))
    found.append(row('APT T=400 on VideoMAE-B, N=1568, kept / full with explicit attention', 0.18, value, light))
    pair = [dict(type='PATT', mid_dims=128), dict(type='AdaptFormer', mid_dims=64)]
    published = kept('video_swin', pair, LONG_CLIP, textbook=True, batch=1)
    value, light = (kept('video_swin', pair, LONG_CLIP, light=o, batch=1) / published for o in (False, True))
    found.append(row('PATT + AdaptFormer on Video Swin-B, 32 frames, kept / published form', 0.6, value, light))
    return found + below_the_first_block()


def below_the_first_block() -> List[Row]:
    """LoRA in the upper half of the blocks against all blocks."""
    halves, work = [], []
    for layers in (None, '6-11'):
        petl = dict(type='LoRA', rank=8, layers=layers)
        halves.append(kept('vit', petl, IMAGE))
        with on_meta():
            work.append(flops(model_of('vit', petl), torch.empty(1, *IMAGE))[1])
    return [row('LoRA in blocks 6-11 / in all, kept', 0.5, halves[1] / halves[0]),
            row('LoRA in blocks 6-11 / in all, operations of the backward pass', 0.5, work[1] / work[0])]


# -- time ---------------------------------------------------------------------------------------------------------------------------------


def cached_rows(steps: int) -> List[Row]:
    """SynQT on cached features."""
    from cached_ratio import METHODS, measure
    args = argparse.Namespace(arch='base', img_size=224, batch=8, images=8, steps=steps)
    found = []
    for tokens, limit in ((16, 5.5), (4, 12.)):
        taken = measure(METHODS[f'SynQT, P={tokens}'], args, torch.device(device()))
        low, high = taken['spread']
        found.append(row(f'SynQT P={tokens}, step with cached features / without', 1 / limit, 1 / taken['ratio'],
                         spread_of=dict(median=1 / taken['ratio'], low=1 / high, high=1 / low), note=f'{taken["ratio"]:.1f} times faster'))
    return found


def prompt_rows(batch: int, rounds: int) -> List[Row]:
    """Times of VPT and E2VPT, and what pruning saves."""
    e2vpt = dict(type='E2VPT', num_tokens=50, num_kv_tokens=5)
    x = torch.randn(batch, *IMAGE, device=device())
    models = {'vpt': model_of('vit', dict(type='VPT', num_tokens=50)), 'e2vpt': model_of('vit', e2vpt), 'pruned': pruned(e2vpt)}
    share_trunk(list(models.values()))
    models.update({f'{name} plain': plain(model).train() for name, model in models.items()})
    for model in models.values():
        model.to(device())
    took = interleave({name: (lambda m=m: train_step(m, x)) for name, m in models.items()}, rounds, 'prompts')
    vpt = ratio(took['vpt'], took['vpt plain'])
    found = [row('VPT-deep P=50, step / plain form', 0.8, vpt['median'], spread_of=vpt)]
    bytes_ = {}
    for name, make in (('e2vpt', lambda: model_of('vit', e2vpt)), ('pruned', lambda: pruned(e2vpt))):
        with on_meta():
            meta = make()
            bytes_[name] = saved_bytes(meta, torch.empty(8, *IMAGE))
            bytes_[f'{name} plain'] = saved_bytes(plain(meta).train(), torch.empty(8, *IMAGE))
    extra = 'unpruned prompts are keys and values only, so little is left to save'
    for form, ours, before in (('our form / our unpruned', 'pruned', 'e2vpt'), ('our form / plain unpruned', 'pruned', 'e2vpt plain'),
                               ('prompts in the stream / the same unpruned', 'pruned plain', 'e2vpt plain')):
        times = ratio(took[ours], took[before])
        note = extra if before == 'e2vpt' else ''
        found.append(row(f'E2VPT P=50 without half its tokens, kept, {form}', 0.95, bytes_[ours] / bytes_[before], note=note))
        found.append(row(f'E2VPT P=50 without half its tokens, step, {form}', 0.95, times['median'], spread_of=times, note=note))
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


def repeat(times: int, function: Callable[..., Any], *args: Any) -> None:
    """Call a short function often enough to be timed; results are dropped, so that memory is used again."""
    for _ in range(times):
        function(*args)


def kronecker_rows(rounds: int) -> List[Row]:
    """KAdaptation's update of one op, batch 8: ours over the materialised product."""
    from mmpetl.backbones.attach import build_method
    from mmpetl.sites import BlockSpec
    found = []
    method = build_method(dict(type='KAdaptation', bias=None), [BlockSpec(0, 0, 768, 12, 3072, 1, (14, 14))]).to(device())
    textbook = PlainKAdaptation(method)
    with torch.no_grad():
        for p in method.parameters():
            p.uniform_(-1, 1)
    for tokens, limit in ((197, 60), (50, 200)):
        x = torch.randn(8, tokens, 768, device=device())
        none = x.new_zeros(())  # only the update is timed
        with torch.no_grad():
            took = interleave({'ours': lambda x=x, n=none: repeat(20, method.on_linear, 0, 'q', x, n),
                               'plain': lambda x=x, n=none: textbook.linear(0, 'q', x, n)}, rounds)
        times = ratio([t / 20 for t in took['ours']], took['plain'])
        factor = statistics.median(b / (a / 20) for a, b in zip(took['ours'], took['plain']))
        shown = f'{times["median"]:.4f} ({times["low"]:.4f}-{times["high"]:.4f})'
        entry = row(f'KAdaptation, forward of the update, N={tokens}, / Kronecker products formed', 1 / limit, times['median'])
        found.append(dict(entry, measured=shown, note=f'{factor:.0f} times faster'))
    return found


def peer_rows(batch: int, rounds: int) -> List[Row]:
    """peft, upstream trunks, start of a process."""
    found = []
    if missing('peft', 'transformers'):
        print(f'peft LoRA: {missing("peft", "transformers")}')
    else:
        lora = lora_against_peft(batch, rounds)
        times, light = lora['time']['ours'], lora['time']['ours, light']
        found.append(row('LoRA q, v, rank 8, step / peft', 0.9, times['median'], light['median'], spread_of=times))
        value, low = (lora['kept'][name] / lora['kept']['peft'] for name in ('ours', 'ours, light'))
        found.append(row('LoRA q, v, rank 8, kept / peft', 1., value, low))
    times = trunk_times('mmpretrain ViT-B/16', batch, rounds)
    for key, work in (('inference: empty', 'no methods, inference'), ('inference: merged', 'merged LoRA, inference'),
                      ('full: empty', 'no methods, full fine-tuning')):
        note = '1.00 within the noise of a run'
        found.append(row(f'{work} / upstream ViT-B', 1.03, times[key]['median'], spread_of=times[key], note=note))
    start = startup(rounds)['added']
    found.append(row('import, build ViT-B, attach; over upstream alone', 1., start['median'], unit=' s', spread_of=start))
    return found


# -- command ------------------------------------------------------------------------------------------------------------------------------


def run_targets(folder: Path, batch: int, rounds: int) -> None:
    """Measure, print, write targets.json."""
    parts: List[Callable[[], List[Row]]] = [
        memory_rows, lambda: kronecker_rows(max(rounds, 5)), lambda: cached_rows(rounds), lambda: prompt_rows(batch, rounds),
        lambda: peer_rows(batch, rounds)]
    rows = [r for part in parts for r in part()]
    header = ['work', 'target', 'measured', 'light', 'met', 'note']
    cells = [[r[key] for key in header] for r in rows]
    print_table('Targets', header, cells)
    missed = sum(r['met'] == 'missed' for r in rows)
    print(f'{len(rows) - missed} of {len(rows)} met')
    write_json(folder / 'targets.json', dict(
        hardware=hardware(), settings=f'fp32, kept bytes at batch 8 (video 1), times at batch {batch} in {rounds} rounds',
        tables=[dict(header=header, rows=cells)]))
    print(f'Written: {folder / "targets.json"}')
