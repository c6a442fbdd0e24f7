# SPDX-License-Identifier: Apache-2.0
"""Which methods, memory settings and batches of a config fit into a card: plans side by side, ranked."""

import copy
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from mmengine.config import Config

from ..recompute import LEVELS
from ..registry import METHODS as REGISTERED
from ..suggest import nearest
from ..training.own_config import METHODS, TUNE
from .plan import Plan, kept, plan

#: Units of ``--budget`` in bytes. A card that is sold as 24 GB has 24 GiB.
UNITS = {'MB': 1 << 20, 'MIB': 1 << 20, 'GB': 1 << 30, 'GIB': 1 << 30}
#: The config's own methods, as they stand in it.
OWN = 'as configured'


@dataclass(frozen=True)
class Choice:
    """One method with one memory setting.

    Attributes:
        method: Name; :data:`OWN` for the config's own methods.
        memory: 'standard', 'light' or 'lightest'.
        plan: Costs with the config's batch.
        largest_batch: Inputs per step and process that fit into the budget, 0 if not even one does; None without a
            budget, or where nothing is kept for the backward pass.
    """
    method: str
    memory: str
    plan: Plan
    largest_batch: Optional[int] = None

    def as_dict(self) -> Dict[str, Any]:
        """For JSON."""
        return dict(asdict(self), memory_bytes=self.plan.memory_bytes)


def budget_bytes(text: str) -> int:
    """'24GB' -> bytes.

    Raises:
        ValueError: If it is no number with MB, GB, MiB or GiB.
    """
    match = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*', text)
    if not match or match.group(2).upper() not in UNITS or not float(match.group(1)):
        raise ValueError(f'--budget {text!r}: expected a number with MB or GB, for example 24GB')
    return int(float(match.group(1)) * UNITS[match.group(2).upper()])


def candidates(names: Sequence[str] = ()) -> List[str]:
    """Names of the methods to compare: those that are given, else the config's own, the linear probe, bias tuning, full
    fine-tuning and every registered method.

    Raises:
        ValueError: If a name is unknown.
    """
    REGISTERED.get('LoRA')  # a look-up registers all
    known = [OWN, *METHODS, *sorted(set(REGISTERED.module_dict) - set(METHODS))]
    by_case = {name.lower(): name for name in known}
    for name in names:
        if name.lower() not in by_case:
            raise ValueError(f'--methods {name!r} is unknown{nearest(name, known)}')
    return [by_case[name.lower()] for name in names] or known


def with_method(cfg: Config, name: str, memory: str) -> Config:
    """The config with other methods on its backbone, and another memory setting; methods that
    :data:`mmpetl.training.own_config.METHODS` does not list have their defaults."""
    cfg = copy.deepcopy(cfg)
    backbone = cfg.model.backbone
    backbone.memory = memory
    if name != OWN:
        backbone.petl = copy.deepcopy(METHODS.get(name, [dict(type=name)]))
        backbone.tune = list(TUNE.get(name, []))
    return cfg


def compare(cfg: Config,
            budget: Optional[int] = None,
            methods: Sequence[str] = (),
            shape: Optional[Sequence[int]] = None,
            progress: Callable[[int, int], None] = lambda done, total: None) -> Tuple[List[Choice], Dict[str, str]]:
    """Plans of a config with every method and memory setting, the largest batch first.

    What is kept for the backward pass grows linearly with the batch, so two plans tell the largest batch that fits.

    Args:
        cfg: Config, see :func:`mmpetl.training.build.read_config`.
        budget: Bytes of the card; None: the order is that of the memory needed.
        methods: Names, see :func:`candidates`.
        shape: Shape of one input in place of the config's, (3, H, W) or (3, T, H, W).
        progress: Called with the numbers of settings done and of all.

    Returns:
        The choices, and the reasons of the methods that this backbone does not carry.

    Raises:
        ValueError: If the config's own model cannot be built, or the backbone carries none of the methods.
    """
    names, found, refused = candidates(methods), [], {}
    total = len(names) * len(LEVELS)
    for at, name in enumerate(names):
        progress(at * len(LEVELS), total)
        try:
            first = plan(with_method(cfg, name, 'standard'), name, shape)
        except (ValueError, KeyError, TypeError) as error:
            if name == OWN:
                raise
            refused[name] = ' '.join(str(error).split())
            continue
        for step, memory in enumerate(LEVELS):
            progress(at * len(LEVELS) + step, total)
            planned = first if memory == 'standard' else replace(  # the setting changes nothing else
                first, activation_bytes=kept(with_method(cfg, name, memory), first.input, first.batch, name))
            found.append(Choice(name, memory, planned, None if budget is None else largest_batch(planned, budget)))
    progress(total, total)
    if not found:
        said = [reason if reason.startswith(name) else f'{name}: {reason}' for name, reason in refused.items()]
        raise ValueError(f'{"; ".join(said)}: choose other methods, or mend the config or --input')
    return sorted(found, key=_rank), refused


def _rank(choice: Choice) -> Tuple[float, int, float]:
    largest = float('inf') if choice.largest_batch is None else choice.largest_batch
    return -largest, choice.plan.memory_bytes, choice.plan.gmac


def largest_batch(planned: Plan, budget: int) -> Optional[int]:
    """Inputs per step that fit into ``budget`` bytes; None where nothing is kept for the backward pass."""
    fixed = planned.memory_bytes - planned.activation_bytes
    per_input = planned.activation_bytes / planned.batch
    if fixed + per_input > budget:
        return 0
    return int((budget - fixed) // per_input) if per_input else None
