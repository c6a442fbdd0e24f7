# SPDX-License-Identifier: Apache-2.0
"""Batches whose every sample has its own adapter: python benchmarks/mixed_batches.py [--batch 8] [--write]

The same LoRAs (q and v, rank 8) on the same ViT of transformers, in one run and in turns:

* ours: ``bank.mixed`` of this project,
* peft: its mixed batches, ``adapter_names=``,
* merged: one model per adapter with the adapter in its weights, and one pass for each,
* base: the model without adapters, which nothing can beat.

Outputs are compared before anything is timed. Prints samples per second, and kernels of one batch; ``--disk`` adds how
many adapters per second are read from disk. Writes mixed_batches.json; ``--write`` puts the table into
docs/adapters.md.
"""

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import torch
from benchmark_costs import ROOT, device, hardware, interleave, ratio, results_folder
from benchmark_peers import missing
from benchmark_report import machine, markdown, print_table, put_between, spread
from kernels import count
from torch import Tensor, nn

import mmpetl
from mmpetl.weights import write_json

PAGE = ROOT / 'docs' / 'adapters.md'
MARKS = '<!-- mixed batches: python benchmarks/mixed_batches.py --write -->', '<!-- end of mixed batches -->'
SIZES: Dict[str, Dict[str, int]] = {
    'toy': dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32,
                patch_size=8),
    'tiny': dict(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768),
    'base': dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
}


def vit(size: str) -> nn.Module:
    """The ViT of transformers without its pooling layer, the same weights at every call."""
    from transformers import ViTConfig, ViTModel
    torch.manual_seed(0)
    config = ViTConfig(**SIZES[size], attn_implementation='sdpa', hidden_dropout_prob=0.,
                       attention_probs_dropout_prob=0.)
    model: nn.Module = ViTModel(config, add_pooling_layer=False).eval()
    return model


class Contenders:
    """The same adapters in every form.

    Args:
        size: Key of :data:`SIZES`.
        adapters: How many adapters.
        batch: Samples B; sample n has adapter n modulo ``adapters``.
    """

    def __init__(self, size: str, adapters: int, batch: int) -> None:
        from peft import PeftModel
        self.names = [f'a{n}' for n in range(adapters)]
        self.ids = [self.names[n % adapters] for n in range(batch)]
        side = SIZES[size].get('image_size', 224)
        self.x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1)).to(device())
        self.folder = tempfile.TemporaryDirectory()
        self.base = vit(size).to(device())
        self.bank = mmpetl.AdapterBank(vit(size))
        self.peft: Any = None
        self.merged: Dict[str, nn.Module] = {}
        for name in self.names:
            self.bank.add(name, [dict(type='LoRA', rank=8)])
            for parameter in self.bank.backbone.petl.parameters():
                nn.init.normal_(parameter, std=0.05)
            place = f'{self.folder.name}/{name}'
            mmpetl.save_peft(self.bank.model, place)
            self.bank.save(name, f'{place}.safetensors')
            if self.peft is None:
                self.peft = PeftModel.from_pretrained(vit(size), place, adapter_name=name)
            else:
                self.peft.load_adapter(place, name)
            merged = vit(size)
            mmpetl.load_peft(merged, place)
            mmpetl.merge(merged)
            self.merged[name] = merged.eval().to(device())
        self.bank.model.to(device()).eval()
        for name in self.names:
            for method in self.bank[name].methods.values():
                method.to(device())
        self.peft.eval().to(device())

    @torch.no_grad()
    def run_ours(self) -> Tensor:
        """(B, N, C) of all samples at once."""
        with self.bank.mixed(self.ids) as model:
            return model(self.x).last_hidden_state

    @torch.no_grad()
    def run_peft(self) -> Tensor:
        """(B, N, C) of peft's mixed batch."""
        return self.peft(pixel_values=self.x, adapter_names=self.ids).last_hidden_state

    @torch.no_grad()
    def run_merged(self) -> Tensor:
        """(B, N, C), one pass per adapter."""
        found: List[Any] = [None] * len(self.ids)
        for name in dict.fromkeys(self.ids):
            rows = [n for n, chosen in enumerate(self.ids) if chosen == name]
            for row, out in zip(rows, self.merged[name](self.x[rows]).last_hidden_state):
                found[row] = out
        return torch.stack(found)

    @torch.no_grad()
    def run_base(self) -> Tensor:
        """(B, N, C) without adapters."""
        return self.base(self.x).last_hidden_state

    def runs(self) -> Dict[str, Callable[[], Tensor]]:
        """Name -> a pass of the batch."""
        return dict(ours=self.run_ours, peft=self.run_peft, merged=self.run_merged, base=self.run_base)

    def differences(self) -> Dict[str, float]:
        """Largest difference of each form to the merged models, relative to their largest output."""
        wanted = self.run_merged()
        return {name: float((run() - wanted).abs().max() / wanted.abs().max())
                for name, run in self.runs().items() if name in ('ours', 'peft')}

    def from_disk(self, times: int = 3) -> float:
        """Adapters per second that come from disk into batches, one in memory at a time."""
        bank = mmpetl.AdapterBank(copy.deepcopy(self.base))
        bank.serve({n: f'{self.folder.name}/{n}.safetensors' for n in self.names}, keep=1)
        started = time.perf_counter()
        for _ in range(times):
            for name in self.names:
                bank[name]
        return times * len(self.names) / (time.perf_counter() - started)


def measure(size: str, adapters: Sequence[int], batch: int, rounds: int, disk: bool) -> List[Dict[str, Any]]:
    """One entry per number of adapters: differences, kernels, samples per second, ratios of ours."""
    found = []
    for number in adapters:
        each = Contenders(size, number, batch)
        differences = each.differences()
        if max(differences.values()) > 1e-4:
            raise SystemExit(f'the outputs differ: {differences}')
        kernels = {name: count(run).total for name, run in each.runs().items()}
        took = interleave(each.runs(), rounds, f'{number} adapters') if rounds else {}
        found.append(dict(
            adapters=number, batch=batch, differences=differences, kernels=kernels,
            samples_per_second={name: batch / sorted(times)[len(times) // 2] for name, times in took.items()},
            time={name: ratio(took['ours'], took[name]) for name in took if name != 'ours'},
            from_disk=each.from_disk() if disk else None))
    return found


def table(found: Sequence[Dict[str, Any]]) -> Tuple[List[str], List[List[str]]]:
    """Header and rows: kernels of a batch, samples per second, and our time relative to that of each other form."""
    names = ('ours', 'peft', 'merged', 'base')
    rows = [[str(f['adapters']), *(str(f['kernels'][n]) for n in names),
             *(f'{f["samples_per_second"][n]:.2f}' if f['samples_per_second'] else '–' for n in names),
             *(spread(f['time'].get(n)) for n in names[1:])] for f in found]
    return ['adapters', *(f'kernels {n}' for n in names), *(f'samples/s {n}' for n in names),
            *(f'time of {n}' for n in names[1:])], rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', choices=list(SIZES), default='base')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--adapters', type=int, nargs='+', default=[1, 4, 8], help='adapters in the batch')
    parser.add_argument('--steps', type=int, default=3, help='timed rounds (default 3); 0 counts kernels only')
    parser.add_argument('--disk', action='store_true', help='adapters per second from disk as well')
    parser.add_argument('--write', action='store_true', help=f'put the table into {PAGE.relative_to(ROOT)}')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'benchmark')
    args = parser.parse_args()
    lacking = missing('peft', 'transformers')
    if lacking:
        raise SystemExit(lacking)
    found = measure(args.size, args.adapters, args.batch, args.steps, args.disk)
    header, rows = table(found)
    title = f'Mixed batches of {args.batch}, ViT {args.size}'
    print_table(title, header, rows)
    for f in found:
        if f['from_disk']:
            print(f'{f["adapters"]} adapters: {f["from_disk"]:.0f} per second from disk')
    folder = results_folder(args.out)
    write_json(folder / 'mixed_batches.json', dict(hardware=hardware(), size=args.size, results=found))
    print(f'Written: {folder / "mixed_batches.json"}')
    if args.write:
        put_between(PAGE, *MARKS, f'{title}, {args.steps} rounds in turns; {machine(hardware())} (measured):\n\n'
                    + markdown(header, rows))


if __name__ == '__main__':
    main()
