# SPDX-License-Identifier: Apache-2.0
"""Against libraries that can be installed.

    python benchmarks/benchmark_peers.py [--batch 2] [--steps 3] [--skip-startup]

* LoRA on q and v, rank 8: peft on the transformers ViT-B/16 (fused attention) against ours, training steps and kept
  bytes.
* Trunks: timm and upstream mmpretrain and mmaction2 against our backbones without methods, and with LoRA merged into
  the weights: inference and full fine-tuning. Video backbones at small size, so that a round takes seconds.
* Start: import, build ViT-B and attach LoRA, against import and build alone, each in a fresh process.

Models of one comparison take turns in every round; ratios are ours to theirs. Writes peers.json. A package that is not
installed is named and left out.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import torch
from benchmark_costs import MIB, ROOT, build, device, hardware, interleave, last, ratio, results_folder, train_step
from benchmark_report import number, print_table, spread
from torch import nn

import mmpetl
from mmpetl.costs.memory import on_meta, saved_bytes
from mmpetl.weights import write_json

VIT = (3, 224, 224)
#: Comparison -> (ours, theirs, shape of one input): small sizes for video.
VIDEOMAE = dict(img_size=112, patch_size=16, embed_dims=384, depth=12, num_heads=6, num_frames=16)
VIDEO_SWIN = dict(arch='tiny', drop_path_rate=0.)
TRUNKS: Dict[str, Any] = {
    'mmpretrain ViT-B/16': ('vit', dict(arch='base'), VIT),
    'mmpretrain Swin-T': ('swin', dict(arch='tiny', drop_path_rate=0.), VIT),
    'mmaction2 VideoMAE-S 112': ('videomae', VIDEOMAE, (3, 16, 112, 112)),
    'mmaction2 Video Swin-T 112': ('video_swin', VIDEO_SWIN, (3, 8, 112, 112)),
}


def missing(*packages: str) -> Optional[str]:
    """One line that names what is not installed, else None."""
    lacking = [name for name in packages if importlib.util.find_spec(name) is None]
    return f'left out, not installed: {", ".join(lacking)} (pip install {" ".join(lacking)})' if lacking else None


# -- LoRA -------------------------------------------------------------------------------------------------------------


def peft_model() -> nn.Module:
    """peft's LoRA on the transformers ViT-B/16, q and v, rank 8, in train mode."""
    from peft import LoraConfig, get_peft_model
    from transformers import ViTConfig, ViTModel
    config = ViTConfig(attn_implementation='sdpa', hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
    base = ViTModel(config, add_pooling_layer=False)
    names = {n.rsplit('.', 1)[-1] for n, m in base.named_modules() if isinstance(m, nn.Linear)}
    targets = ['query', 'value'] if 'query' in names else ['q_proj', 'v_proj']
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=8, target_modules=targets, lora_dropout=0.))
    return model.train()


class ClassToken(nn.Module):
    """The feature of a model whose output has all tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return last(self.model(x))[:, 0]


def our_lora(**options: Any) -> nn.Module:
    """Our ViT-B/16 with the same LoRA."""
    from cases import BACKBONE
    return build(BACKBONE['vit'], dict(petl=[dict(type='LoRA', rank=8)]), **options)


def lora_against_peft(batch: int, rounds: int) -> Dict[str, Any]:
    """Kept bytes and step times, ours over peft's."""
    makers: Dict[str, Callable[[], nn.Module]] = {
        'ours': our_lora, 'ours, light': lambda: our_lora(memory='light'), 'peft': lambda: ClassToken(peft_model())}
    kept, models = {}, {}
    for name, make in makers.items():
        with on_meta():
            kept[name] = saved_bytes(make(), torch.empty(batch, *VIT)) / batch
        models[name] = make().to(device())
    x = torch.randn(batch, *VIT, device=device())
    took = interleave({name: (lambda m=m: train_step(m, x)) for name, m in models.items()}, rounds, 'LoRA')
    trained = {name: sum(p.numel() for p in m.parameters() if p.requires_grad) for name, m in models.items()}
    return dict(kept=kept, trained=trained, time={name: ratio(took[name], took['peft']) for name in models})


# -- trunks -----------------------------------------------------------------------------------------------------------


def infer(model: nn.Module, x: torch.Tensor) -> None:
    """One forward pass in evaluation mode."""
    with torch.no_grad():
        model(x)


def trunk_models(kind: str, arguments: Dict[str, Any]) -> Dict[str, nn.Module]:
    """Upstream's trunk, ours without methods, and ours with LoRA merged; with the same weights."""
    from cases import BACKBONE
    backbone = BACKBONE[kind]
    upstream = backbone.upstream(**arguments)

    def ours(**options: Any) -> nn.Module:
        model = mmpetl.registry.MODELS.build({'type': backbone.type, **arguments, **options})
        model.load_state_dict(upstream.state_dict(), strict=False)
        return model

    merged = ours(petl=[dict(type='LoRA', rank=8)])
    mmpetl.merge(merged)
    found = {'upstream': upstream, 'empty': ours(tune=['*']), 'merged': merged}
    for model in found.values():
        model.to(device())
        model.eval()
    return found


def trunk_times(title: str, batch: int, rounds: int) -> Dict[str, Any]:
    """Inference and full fine-tuning of our trunks over upstream's."""
    kind, arguments, shape = TRUNKS[title]
    models = trunk_models(kind, arguments)
    if kind == 'vit' and missing('timm') is None:
        import timm
        models['timm'] = timm.create_model('vit_base_patch16_224', num_classes=0).to(device()).eval()
    x = torch.randn(batch, *shape, device=device())
    runs: Dict[str, Callable[[], None]] = {
        f'inference, {name}': (lambda m=m: infer(m, x))
        for name, m in models.items()
    }
    runs.update({f'full, {name}': (lambda m=m: train_step(m, x)) for name, m in models.items() if name != 'merged'})
    took = interleave(runs, rounds, title)
    found = {}
    for what in ('inference', 'full'):
        found[what, 'empty'] = ratio(took[f'{what}, empty'], took[f'{what}, upstream'])
        if f'{what}, timm' in took:
            found[what, 'timm'] = ratio(took[f'{what}, empty'], took[f'{what}, timm'])
    found['inference', 'merged'] = ratio(took['inference, merged'], took['inference, upstream'])
    return {f'{what}: {name}': value for (what, name), value in found.items()}


# -- start ------------------------------------------------------------------------------------------------------------

UPSTREAM = 'from mmpretrain.models import VisionTransformer; model = VisionTransformer("base")'
OURS = f'import mmpetl; {UPSTREAM}; mmpetl.attach(model, [dict(type="LoRA", rank=8)])'


def startup(rounds: int) -> Dict[str, Any]:
    """Seconds that import and attach add to a fresh process that imports mmpretrain and builds ViT-B."""
    took: Dict[str, List[float]] = {OURS: [], UPSTREAM: []}
    for number_ in range(rounds + 1):
        for code, found in took.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, '-c', code],
                           cwd=ROOT,
                           check=True,
                           stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            if number_:  # the first round fills the file cache
                found.append(time.perf_counter() - began)
    added = [a - b for a, b in zip(took[OURS], took[UPSTREAM])]
    return dict(
        added=dict(median=statistics.median(added), low=min(added), high=max(added)),
        ratio=ratio(took[OURS], took[UPSTREAM]))


# -- command ----------------------------------------------------------------------------------------------------------


def tables(batch: int, rounds: int, with_startup: bool) -> List[Dict[str, Any]]:
    """Measure everything: title, header and rows of each table."""
    found: List[Dict[str, Any]] = []
    lacking = missing('peft', 'transformers')
    if lacking:
        print(f'peft LoRA: {lacking}')
    else:
        lora = lora_against_peft(batch, rounds)
        theirs = lora['kept']['peft']
        rows = [[
            name, f'{lora["trained"][name]:,}',
            number(kept, '.2f', MIB), f'{kept / theirs:.3f}',
            spread(lora['time'][name])
        ] for name, kept in lora['kept'].items()]
        found.append(
            dict(
                title='LoRA q, v, rank 8, ViT-B/16',
                rows=rows,
                header=['', 'trainable', 'kept MiB', 'of peft', 'step of peft']))
    if missing('timm'):
        print(f'timm trunk: {missing("timm")}')
    rows = []
    for title in TRUNKS:
        times = trunk_times(title, batch, rounds)
        rows.append([title, *(spread(times.get(key)) for key in (
            'inference: empty', 'inference: merged', 'full: empty', 'inference: timm', 'full: timm'))])
    found.append(
        dict(
            title='Backbones, ours over theirs',
            rows=rows,
            header=[
                '', 'no methods, inference', 'merged LoRA, inference', 'full fine-tuning', 'inference over timm',
                'full over timm'
            ]))
    if with_startup:
        start = startup(rounds)
        rows = [['import, build ViT-B, attach, over import and build', spread(start['ratio']), spread(start['added'])]]
        found.append(dict(title='Start of a process', rows=rows, header=['', 'ratio', 'seconds added']))
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--steps', type=int, default=3, help='timed rounds (default 3)')
    parser.add_argument('--skip-startup', action='store_true', help='start no fresh processes')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'benchmark')
    args = parser.parse_args()
    found = tables(args.batch, args.steps, not args.skip_startup)
    for table in found:
        print_table(table['title'], table['header'], table['rows'])
    folder = results_folder(args.out)
    settings = f'batch {args.batch}, fp32, {args.steps} timed rounds'
    write_json(folder / 'peers.json', dict(hardware=hardware(), settings=settings, tables=found))
    print(f'Written: {folder / "peers.json"}')


if __name__ == '__main__':
    main()
