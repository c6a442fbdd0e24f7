# SPDX-License-Identifier: Apache-2.0
"""Key tables: regular expressions that say what a published name is called here."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from .match_report import Report

State = dict[str, torch.Tensor]
#: (pattern, new name); ``\1`` inserts a group. A new name with ``@q``, ``@k`` or ``@v`` at its end is one third of a
#: fused tensor; one that starts with ``+`` goes to ``Report.extras``.
Rules = Sequence[tuple[str, str]]
#: (pattern, why the key is not needed).
Ignored = Sequence[tuple[str, str]]

HEAD = 'classifier'
DECODER = 'decoder of the pre-training task'
OTHER_PETL = 'fine-tuning weights of another implementation'
PETL_NAMES: Ignored = ((r'.*(adaptmlp|adapter|lora_|prompt|prefix).*', OTHER_PETL),)


def rename(state: Mapping[str, torch.Tensor], rules: Rules, ignored: Ignored, report: Report) -> State:
    """Apply a key table.

    Args:
        state (Mapping): Tensors under their published names, prefix removed.
        rules, ignored: Tables; the first full match decides.
        report (Report): Receives what is left out, unexpected or extra.

    Returns:
        dict: Tensors under their new names; thirds of fused tensors joined.
    """
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    reasons = [(re.compile(pattern), reason) for pattern, reason in ignored]
    found: State = {}
    for key, tensor in state.items():
        hit = next(((match, new) for pattern, new in compiled if (match := pattern.fullmatch(key))), None)
        if hit is not None:
            new = hit[0].expand(hit[1])
            # The head and its kin: not the backbone's, but worth keeping.
            if new.startswith('+'):
                report.extras[new[1:]] = tensor
                report.left_out[key] = HEAD if 'head' in new else 'not part of the backbone'
            else:
                found[new] = tensor
            continue
        reason = next((reason for pattern, reason in reasons if pattern.fullmatch(key)), None)
        if reason is None:
            report.unexpected.append(key)
        else:
            report.left_out[key] = reason
    return join_thirds(found)


def join_thirds(state: State) -> State:
    """Replace ``name@q``, ``name@k``, ``name@v`` by their concatenation; an absent third of a bias is zero.

    Raises:
        ValueError: A third of a weight is absent.
    """
    joined = {key: tensor for key, tensor in state.items() if '@' not in key}
    # A dict and not a set: keys stay in the order of the file.
    for key in {key.split('@')[0]: None for key in state if '@' in key}:
        parts = [state.get(f'{key}@{letter}') for letter in 'qkv']
        present = next(part for part in parts if part is not None)
        # A missing bias is a zero bias, as for VideoMAE's keys; a missing weight is a broken file.
        if key.endswith('weight') and any(part is None for part in parts):
            raise ValueError(f'{key}: the file lacks one of the query, key and value weights')
        joined[key] = torch.cat([torch.zeros_like(present) if part is None else part for part in parts])
    return joined


def relabel(state: Mapping[str, torch.Tensor], rules: Rules) -> State:
    """Rename without a report; keys that no rule matches keep their names."""
    compiled = [(re.compile(pattern), new) for pattern, new in rules]

    def new_name(key: str) -> str:
        hit = next(((match, new) for pattern, new in compiled if (match := pattern.fullmatch(key))), None)
        return key if hit is None else hit[0].expand(hit[1])

    return {new_name(key): tensor for key, tensor in state.items()}


def depth(state: Iterable[str], stem: str) -> int:
    """Number of modules ``stem.0``, ``stem.1``, ... among the keys of a state dict."""
    found = [int(match.group(1)) for key in state if (match := re.match(rf'{re.escape(stem)}\.(\d+)\.', key))]
    # By the largest number, not by counting: a file may lack a block, and that must show.
    return max(found, default=-1) + 1


def mapped(state: State, pattern: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace, in place, every tensor (...) whose whole key matches ``pattern`` by ``change(tensor)``."""
    for key in [key for key in state if re.fullmatch(pattern, key)]:
        state[key] = change(state[key])
