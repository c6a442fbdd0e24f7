# SPDX-License-Identifier: Apache-2.0
"""Merge an adapter into its base: tools/merge_adapter.py and mmpetl merge."""

import argparse
import os
from collections.abc import Sequence
from typing import Any, Dict, Tuple

from mmengine.config import Config
from torch import nn

from ..console import VERBOSE
from ..merging import MergeReport, merge
from ..training.build import FORCE, build_model, check_output, load_trained, read_config, write_state
from ..training.options import ConfigOptions
from ..tuning import adapter_header, find_backbone
from ..version import __version__
from .numbers import positive


def load_and_merge(cfg: Config, path: str, base: str = '', verify: bool = True,
                   tolerance: float = 1e-3, force: bool = False) -> Tuple[nn.Module, MergeReport, Dict[str, Any]]:
    """Build the model of a config, load base and adapter, merge.

    Args:
        cfg: Config.
        path: Adapter file or checkpoint.
        base: Weight file of the base in place of the one that the config names.
        verify: Compare the backbone before and after on a probe batch.
        tolerance: Largest accepted difference, relative to the largest output.
        force: See :func:`mmpetl.load_adapter`.

    Returns:
        The merged model in evaluation mode, what was merged, and the header that describes the adapter.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If base and adapter do not belong together, or a method cannot be merged.
    """
    if base:
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=base)
    model = build_model(cfg)
    load_trained(model, path, cfg, force)
    model.eval()
    header = adapter_header(model)
    return model, merge(model, verify=verify, tolerance=tolerance), header


def _meta(header: Dict[str, Any], report: MergeReport, path: str) -> Dict[str, Any]:
    return dict(
        mmpetl_version=__version__,
        merged_from=os.path.basename(path),
        merged=report.merged,
        max_difference=report.max_difference,
        methods=header['methods'],
        backbone=header['backbone'],
        base=header['base'])


def _add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument('config', help='config with which the adapter was trained')
    parser.add_argument('adapter', help='adapter file, or checkpoint of the training run')
    parser.add_argument('-o', '--out', required=True, help='*.pth or *.safetensors')
    parser.add_argument(
        '--base', default='', metavar='FILE', help="weight file of the base; default the config's init_cfg")
    parser.add_argument(
        '--backbone-only', action='store_true', help='write the backbone alone, without the prefix backbone.')
    parser.add_argument('--force', action='store_true', help=FORCE)
    parser.add_argument('--no-verify', action='store_true', help='do not compare the merged with the unmerged backbone')
    parser.add_argument(
        '--tolerance', type=positive,
        help='largest accepted difference, relative to the largest output (default 0.001)')
    parser.add_argument(
        '--cfg-options', '--set', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
        help='override entries of the config')
    return parser


def add_parser(subparsers: Any) -> None:
    """Add ``mmpetl merge``."""
    _add_arguments(subparsers.add_parser('merge', help='merge an adapter into its base')).set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Merge and write; the output loads with ``strict=True`` into the stock upstream model.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: What does not fit or cannot be merged, in one line; nothing is written.
    """
    if args.no_verify and args.tolerance:
        raise ValueError(f'--tolerance {args.tolerance:g} is for the comparison that --no-verify leaves out: leave one '
                         'out')
    check_output(args.out, (args.config, args.adapter, args.base or args.config))
    cfg = read_config(args.config, args.cfg_options)
    model, report, header = load_and_merge(cfg, args.adapter, args.base, not args.no_verify, args.tolerance or 1e-3,
                                           args.force)
    state = find_backbone(model)[0].state_dict() if args.backbone_only else model.state_dict()
    write_state(args.out, state, _meta(header, report, args.adapter))
    numbers = sum(t.numel() for t in state.values())
    print(report)
    print(
        f'wrote {args.out}: {len(state)} tensors, {numbers:,} numbers; loads with strict=True into {header["backbone"]}'
    )


def main(argv: Sequence[str]) -> None:
    """The command line of ``tools/merge_adapter.py``."""
    parser = argparse.ArgumentParser(prog='tools/merge_adapter.py', description=__doc__)
    parser.add_argument('--verbose', action='store_true', help=VERBOSE)
    parser.add_argument('--debug', action='store_true', help='show tracebacks')
    run(_add_arguments(parser).parse_args(argv))
