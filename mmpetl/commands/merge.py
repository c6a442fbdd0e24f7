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
from ..training.build import build_model, check_output, load_trained, read_config, write_state
from ..tuning import adapter_header, find_backbone
from ..version import __version__
from .arguments.merge import add_arguments


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
    run(add_arguments(parser).parse_args(argv))
