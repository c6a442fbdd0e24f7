"""The five backbones: registered functions that build the upstream class and attach methods to it.

Functions, not subclasses: the built object is upstream's own, so its state-dict keys, its checkpoint upgrades and
``isinstance`` tests stay as they are. Upstream packages are imported only when a backbone of theirs is built.
"""

from typing import Any, Callable, Optional, Sequence

from torch import nn

from ..registry import MODELS
from .attach import attach, family_named


def _builder(name: str, family: str, build: str = 'build') -> Callable[..., nn.Module]:

    def builder(petl: Sequence[Any] = (), tune: Sequence[str] = (), trunk: str = 'eval', with_cp: Optional[bool] = None,
                memory: str = 'standard', **kwargs: Any) -> nn.Module:
        family_named(family)
        module = __import__(f'{__name__}.{family}', fromlist=[build])
        return attach(getattr(module, build)(**kwargs), petl, tune, trunk, with_cp, memory)

    builder.__name__ = builder.__qualname__ = name
    builder.__doc__ = f"""Build {name} and attach methods to it.

    Args:
        petl: Method configs, see :func:`mmpetl.backbones.attach.attach`.
        tune: Patterns of trunk parameters that also train.
        trunk: 'eval' or 'train', the mode of the frozen trunk while training.
        with_cp: Recompute each block in the backward pass.
        memory: 'standard', 'light' or 'lightest', see :func:`mmpetl.backbones.attach.attach`.
        **kwargs: Arguments of the upstream backbone.
    """
    return MODELS.register_module(name=name)(builder)


VisionTransformer = _builder('VisionTransformer', 'vit')
CLIPVisionTransformer = _builder('CLIPVisionTransformer', 'vit', 'build_clip')
SwinTransformer = _builder('SwinTransformer', 'swin')
VideoMAE = _builder('VideoMAE', 'videomae')
SwinTransformer3D = _builder('SwinTransformer3D', 'video_swin')

__all__ = ['CLIPVisionTransformer', 'SwinTransformer', 'SwinTransformer3D', 'VideoMAE', 'VisionTransformer', 'attach']
