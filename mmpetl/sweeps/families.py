# SPDX-License-Identifier: Apache-2.0
"""What kind of method a config trains: the colours of the plots."""

from typing import Any, Dict, Tuple

OTHER = 'other methods'
#: Family -> the methods of it, by their registered names.
FAMILIES: Dict[str, Tuple[str, ...]] = {
    'weight updates': ('LoRA', 'DoRA', 'VeRA', 'FacT', 'KAdaptation', 'LoHa', 'LoKr', 'OFT', 'BOFT',
                       'GLoRA', 'AdaLoRA', 'GPS', 'SPT'),
    'adapters': ('Adapter', 'AdaptFormer', 'AdapterPlus', 'Compacter', 'Convpass', 'PATT', 'STAdapter', 'RepAdapter',
                 'Mona', 'ARC', 'AIM', 'SCT', 'ZeroI2V', 'DualPath',
                 'ResTuning'),
    'prompts': ('VPT', 'E2VPT', 'APT', 'Prefix'),
    'side networks': ('LST', 'SynQT', 'VQT', 'ResTuningBypass', 'Side4Video'),
    'scaling': ('SSF', 'IA3', 'RLRR', 'DiffFit'),
}
BASE, HEAD, MIXED = 'base parameters', 'head only', 'several families'
#: All of them, in the order of the colours.
ORDER: Tuple[str, ...] = (*FAMILIES, BASE, HEAD, MIXED, OTHER)


def family_of(cfg: Any) -> str:
    """The family of what a config trains, from ``model.backbone.petl`` and ``tune``.

    Args:
        cfg: A config.
    """
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    names = [str(method.get('type')).split('.')[-1] for method in backbone.get('petl') or ()]
    found = {next((family for family, members in FAMILIES.items() if name in members), OTHER) for name in names}
    if len(found) == 1:
        return found.pop()
    if found:
        return MIXED
    return BASE if backbone.get('tune') else HEAD
