# SPDX-License-Identifier: Apache-2.0
"""What a base in fewer bits loses: python benchmarks/base_error.py [--config NAME] [--pictures 64] [--write]

Features of the backbone of a config, with its own weights, on pictures of its test set, for each ``base_dtype``:
relative difference to the float32 base over all pictures, ||f - f32|| / ||f32||, the mean cosine of a picture's two
features, and MiB of the base's weights. Without autocast but for bf16, which runs under its own. ``--write`` puts the
table into docs/configs.md.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import torch
from benchmark_costs import ROOT
from benchmark_report import markdown, print_table, put_between
from mmengine.registry import DATASETS
from torch import Tensor

from mmpetl.training.build import build_model, read_config

FORMS = (None, 'bf16', 'int8', 'nf4')
PAGE = ROOT / 'docs' / 'configs.md'
MARKS = '<!-- base_dtype: python benchmarks/base_error.py --write -->', '<!-- end of base_dtype -->'


def pictures(cfg: Any, number: int) -> Tensor:
    """(number, 3, H, W), evenly from the test set, as the model's preprocessor gets them."""
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    chosen = [dataset[i * len(dataset) // number]['inputs'] for i in range(number)]
    return torch.stack(chosen).float()


@torch.no_grad()
def features(cfg: Any, form: Any, inputs: Tensor) -> Dict[str, Any]:
    """Features (number, C) and bytes of the base in one form."""
    cfg = cfg.copy()
    cfg.model.backbone.base_dtype = form
    model = build_model(cfg).eval()
    model.backbone.init_weights()
    held = sum(getattr(p, 'nbytes_stored', p.numel() * p.element_size()) for p in model.backbone.parameters())
    batch = model.data_preprocessor(dict(inputs=inputs.unbind()), False)['inputs']
    out = model.backbone(batch)[-1]
    return dict(features=out.float().flatten(1), bytes=held)


def measure(config: str, number: int) -> List[Dict[str, Any]]:
    """One entry per form: relative difference, cosine, MiB."""
    cfg = read_config(config)
    inputs = pictures(cfg, number)
    found = {form: features(cfg, form, inputs) for form in FORMS}
    plain = found[None]['features']
    return [dict(base_dtype=form or 'float32', mib=each['bytes'] / 2**20,
                 difference=float((each['features'] - plain).norm() / plain.norm()),
                 cosine=float(torch.cosine_similarity(each['features'], plain).mean())) for form, each in found.items()]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='quickstart/linear')
    parser.add_argument('--pictures', type=int, default=64)
    parser.add_argument('--write', action='store_true', help=f'put the table into {PAGE.relative_to(ROOT)}')
    args = parser.parse_args()
    header = ['base_dtype', 'MiB', 'difference', 'cosine']
    rows = [[f['base_dtype'], f'{f["mib"]:.1f}', f'{100 * f["difference"]:.2f} %', f'{f["cosine"]:.4f}']
            for f in measure(args.config, args.pictures)]
    title = f'Features of {args.config} on {args.pictures} test pictures, beside those of the float32 base'
    print_table(title, header, rows)
    if args.write:
        put_between(PAGE, *MARKS, f'{title} (measured):\n\n{markdown(header, rows)}')


if __name__ == '__main__':
    main()
