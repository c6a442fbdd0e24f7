# SPDX-License-Identifier: Apache-2.0
"""Names of configs, as short as they can be told apart."""

from typing import Dict, Sequence

#: Longest label of a plot.
LONGEST = 28


def short_names(names: Sequence[str]) -> Dict[str, str]:
    """Labels of plots: the first field of each name, and where several names begin alike those fields that tell them
    apart.

    ``lora_vit-base-p16_in21k-pre_..._vtab`` beside ``vpt_vit-base-p16_in21k-pre_..._vtab`` becomes ``lora``. Labels of
    different names differ.

    Args:
        names: Names of configs; fields are set apart by '_'.
    """
    fields = {name: name.split('_') for name in names}
    labels: Dict[str, str] = {}
    for name, own in fields.items():
        alike = [other for other in fields.values() if other[0] == own[0]]
        shared = set.intersection(*map(set, alike))
        more = [field for field in own[1:] if field not in shared] if len(alike) > 1 else []
        labels[name] = _cut(' '.join([own[0], *more]))
    taken = list(labels.values())
    # names that differ by the order of fields, or behind the cut
    return {name: label if taken.count(label) == 1 else f'{label} #{number}'
            for number, (name, label) in enumerate(labels.items(), 1)}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST - 1] + '…'
