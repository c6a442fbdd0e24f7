# SPDX-License-Identifier: Apache-2.0
"""Files of precomputed text features: one unit row per class, and what they were made from.

One ``.npz`` per (text model, data set): ``weight`` (C, E) float32, ``class_names`` (C,), ``templates`` (T,),
``logit_scale`` (natural logarithm of the trained temperature), ``model`` and ``checkpoint_sha256``. Nothing in it is
pickled.
"""

import os
from dataclasses import dataclass, field
from typing import Optional, Tuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..weights.io import atomic_write
from ..weights.reading import read_arrays
from .text_prompts import VIDEO_SETS

#: Folder of the features that the recipes read -> official weights that they are made from.
CLIP_FOLDERS = {'openai-vit-b-32': 'clip-vit-base-p32', 'openai-vit-b-16': 'clip-vit-base-p16'}
#: Temperature of OpenAI's CLIP, as its logarithm.
LN_100 = 4.605170185988092


@dataclass
class TextFeatures:
    """Text features of the classes of one data set.

    Attributes:
        weight: (C, E), rows of unit length.
        class_names: Names in the order of the rows.
        templates: Prompt templates whose features were averaged.
        logit_scale: Natural logarithm of the text model's temperature (4.6052, ln 100, for OpenAI's CLIP).
        model: Name of the text model.
        checkpoint_sha256: Digest of its weight file.
    """
    weight: Tensor
    class_names: Tuple[str, ...]
    templates: Tuple[str, ...] = ()
    logit_scale: float = LN_100
    model: str = ''
    checkpoint_sha256: str = field(default='', repr=False)


def class_weights(prompt_features: Tensor) -> Tensor:
    """Average the features of a class's prompts as CLIP does: unit prompts, mean, unit rows.

    Args:
        prompt_features: (C, T, E), any length.

    Returns:
        (C, E), rows of unit length.
    """
    return F.normalize(F.normalize(prompt_features, dim=-1).mean(1), dim=-1)


def save_text_features(path: str, features: TextFeatures) -> None:
    """Write a text-feature file.

    Raises:
        ValueError: If rows, names and unit length do not agree.
    """
    _check(path, features.weight, features.class_names)
    arrays = dict(
        weight=features.weight.detach().cpu().float().numpy(),
        class_names=np.array(features.class_names, dtype=np.str_),
        templates=np.array(features.templates, dtype=np.str_),
        logit_scale=np.float32(features.logit_scale),
        model=np.str_(features.model),
        checkpoint_sha256=np.str_(features.checkpoint_sha256))
    atomic_write(path, lambda file: np.savez(file, **arrays))


def load_text_features(path: str, num_classes: Optional[int] = None, dim: Optional[int] = None) -> TextFeatures:
    """Read a text-feature file.

    Args:
        path: The file.
        num_classes: Expected number of classes C.
        dim: Expected width E.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has another form, or does not fit the head.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
        base, name = CLIP_FOLDERS.get(folder), os.path.splitext(os.path.basename(path))[0]
        source, out = ('--videos ' + name, path) if name in VIDEO_SETS else (
            '--suite elevater', os.path.dirname(path) or '.')
        raise FileNotFoundError(
            f'text-feature file {path} is missing: '
            f"'python tools/text_features.py {base or 'CLIP_WEIGHTS'} {source}{'' if base else ' --out ' + out}' "
            'makes it')
    try:
        found = read_arrays(path)
        weight = torch.from_numpy(found['weight']).float()
        names = tuple(str(n) for n in found['class_names'])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is not a text-feature file ({error}): it needs 'weight' (C, E) and 'class_names' (C,)") from None
    _check(path, weight, names)
    if num_classes is not None and len(weight) != num_classes:
        raise ValueError(f'{path} has {len(weight)} classes, but the head has {num_classes}')
    if dim is not None and weight.shape[1] != dim:
        raise ValueError(
            f'{path} has features of width {weight.shape[1]}, but the head takes {dim}: is the neck of the same CLIP '
            'model?')
    return TextFeatures(weight, names, tuple(str(t) for t in found.get('templates', ())),
                        float(found.get('logit_scale', LN_100)), str(found.get('model', '')),
                        str(found.get('checkpoint_sha256', '')))


def _check(path: str, weight: Tensor, names: Tuple[str, ...]) -> None:
    if weight.ndim != 2 or len(weight) != len(names):
        raise ValueError(f"{path}: 'weight' is {tuple(weight.shape)}, but there are {len(names)} class names")
    lengths = weight.float().norm(dim=1)
    worst = int((lengths - 1).abs().argmax())
    if not (lengths[worst] - 1).abs() < 1e-3:  # 'not <' and not '>=': NaN is refused, too
        raise ValueError(
            f'{path}: row {worst} ({names[worst]!r}) has length {float(lengths[worst]):.4f}, but rows must have unit '
            'length')
