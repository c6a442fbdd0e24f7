# SPDX-License-Identifier: Apache-2.0
"""The backbones: registered functions that build the upstream class and attach methods to it.

Functions, not subclasses: the built object is upstream's own, so its state-dict keys, its checkpoint upgrades and
``isinstance`` tests stay as they are. Upstream packages are imported only when a backbone of theirs is built.
"""

from typing import Any, Callable, Optional, Sequence

from torch import nn

from ..registry import MODELS
from .attach import attach
from .family import FAMILIES


def _builder(name: str, family: str, build: str) -> Callable[..., nn.Module]:

    def builder(petl: Sequence[Any] = (), tune: Sequence[str] = (), trunk: str = 'eval', with_cp: Optional[bool] = None,
                memory: str = 'standard', frames: int = 0, frame_pool: str = 'after_norm', base_dtype: Any = None,
                **kwargs: Any) -> nn.Module:
        # By name and only now: a family imports its upstream package, which may not be installed.
        module = __import__(f'{__name__}.{family}', fromlist=[build])
        return attach(getattr(module, build)(**kwargs), petl, tune, trunk, with_cp, memory, frames, frame_pool,
                      base_dtype)

    # Registries and tracebacks show the type's name, not 'builder'.
    builder.__name__ = builder.__qualname__ = name
    builder.__doc__ = f"""Build {name} and attach methods to it.

    Args:
        petl: Method configs, see :func:`mmpetl.backbones.attach.attach`.
        tune: Patterns of base parameters that also train.
        trunk: 'eval' or 'train', the mode of the frozen base while training.
        with_cp: Recompute each block in the backward pass.
        memory: 'standard', 'light' or 'lightest', see :func:`mmpetl.backbones.attach.attach`.
        frames: Frames of the clips that a backbone for images reads.
        frame_pool: Where they are averaged.
        base_dtype: 'bf16', 'int8' or 'nf4' stores the frozen weights in fewer bits, see
            :mod:`mmpetl.backbones.base_dtype`.
        **kwargs: Arguments of the upstream backbone.
    """
    return MODELS.register_module(name=name)(builder)


for _family, _entry in FAMILIES.items():
    for _type, (_build, _) in _entry.types.items():
        # Importable too, as mmpetl.backbones.VisionTransformer.
        globals()[_type] = _builder(_type, _family, _build)
for _type, _build in (('HF', 'build_hf'), ('TIMM', 'build_timm')):
    globals()[_type] = _builder(_type, 'foreign_build', _build)

__all__ = ['HF', 'TIMM', 'attach', *sorted(t for entry in FAMILIES.values() for t in entry.types)]
