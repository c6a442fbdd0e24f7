# SPDX-License-Identifier: Apache-2.0
"""What ``attach`` must know of a kind of backbone: a description, filled in once per backbone file."""

import importlib
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Optional, Tuple, Union

from torch import Tensor, nn

from ..sites import BlockSpec


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True)
class Family:
    """One kind of backbone.

    Attributes:
        name: Short name, also the architecture of its weights unless ``arch_of`` knows better.
        points: Points that the structure allows.
        classes: Upstream class -> specialised class, applied in place to every submodule of exactly that class.
        blocks: Backbone -> its blocks in order, over all stages.
        specs: Backbone -> one BlockSpec per block.
        embed: Backbone -> patch-embedding module.
        embed_parameters: Backbone -> weight and bias into which a scale and shift after the patch embedding merge.
        fold_embed_shift: Where the embedding has no bias: backbone and shift (C) -> what to write, and its new value;
            None if impossible.
        final_norm: Backbone -> last LayerNorm, or None.
        final_class: Class that replaces the last LayerNorm.
        merges_prompts: Whether that class averages prompts with the grid tokens (else the backbone's own pooling sees
            them).
        pools_prompts: Backbone -> whether its published prompt form pools prompts.
        tokens_read: Backbone -> how many leading tokens its output reads after the last block; None: all.
        sides: Upstream backbone class -> its subclass for methods with ``on_side``; empty where that is undefined.
        scope: Backbone -> the part in which classes are specialised; default the backbone itself.
        forms: Upstream backbone class -> its subclass that serves as backbone of an OpenMMLab model.
        arch_of: Backbone -> architecture of its weights, a name of the weight converters.
        global_attention: Whether every token sees every other, so that each sample may have its own extra keys.
        check: Raises ValueError when the backbone was built in a way that cannot be specialised.
        check_prompts: Raises ValueError when prompts in the stream do not fit the backbone's outputs.
        check_side: Raises ValueError when side methods are not defined over the backbone's blocks, or it is asked for
            another output than one vector per sample, which is all that they give.
        head: Names of children that are the model's head: they train, as everything outside a backbone does.
        own_names: For backbones that are not converted from other formats: backbone, state dict -> the state dict under
            the names that its library gives now.
        entry: Backbone -> the module behind the position table, where ``on_entry`` acts; None where it cannot.
        entry_class: Class that replaces it.
        clips: Upstream backbone class for images -> its subclass that reads clips, frame by frame.
        clip_axes: Where the backbone takes clips in another order of axes: backbone, (B, 3, T, H, W) -> its own order.
    """
    name: str
    points: FrozenSet[str]
    classes: Dict[type, type]
    blocks: Callable[[nn.Module], List[nn.Module]]
    specs: Callable[[nn.Module], List[BlockSpec]]
    embed: Callable[[nn.Module], nn.Module]
    embed_parameters: Callable[[nn.Module], Tuple[Tensor, Optional[Tensor]]]
    final_norm: Callable[[nn.Module], Optional[nn.Module]]
    final_class: type
    fold_embed_shift: Optional[Callable[[nn.Module, Tensor], Tuple[Tensor, Tensor]]] = None
    merges_prompts: bool = False
    pools_prompts: Callable[[nn.Module], bool] = lambda model: False
    tokens_read: Callable[[nn.Module], Optional[int]] = _nothing
    sides: Dict[type, type] = field(default_factory=dict)
    scope: Callable[[nn.Module], nn.Module] = lambda model: model
    forms: Dict[type, type] = field(default_factory=dict)
    arch_of: Optional[Callable[[nn.Module], str]] = None
    global_attention: bool = True
    check: Callable[[nn.Module], None] = _nothing
    check_prompts: Callable[[nn.Module, bool], None] = _nothing
    check_side: Callable[[nn.Module], None] = _nothing
    head: Tuple[str, ...] = ()
    own_names: Optional[Callable[[nn.Module, Dict[str, Tensor]], Dict[str, Tensor]]] = None
    entry: Callable[[nn.Module], Optional[nn.Module]] = _nothing
    entry_class: Optional[type] = None
    clips: Dict[type, type] = field(default_factory=dict)
    clip_axes: Optional[Callable[[nn.Module, Tensor], Tensor]] = None

    def arch(self, backbone: nn.Module) -> str:
        """Architecture of the weights of a backbone."""
        return self.name if self.arch_of is None else self.arch_of(backbone)


@dataclass(frozen=True)
class Entry:
    """One row of the table of families: what is known without importing an upstream package.

    Attributes:
        upstream: Class of the backbones, with its module; or several.
        types: Registered type -> (function of the family's file that builds it, architecture of its weights). Backbones
            of timm and transformers have none: mmpetl.TIMM and mmpetl.HF build them all.
        towers: ``model_type`` of a config of transformers -> name of the class that mmpetl.HF builds for it.
    """
    upstream: Union[str, Tuple[str, ...]]
    types: Mapping[str, Tuple[str, str]] = field(default_factory=dict)
    towers: Mapping[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> Tuple[str, ...]:
        """All upstream classes."""
        return (self.upstream, ) if isinstance(self.upstream, str) else self.upstream


#: Name of a file of this package -> its row. A new family is its file and one row here.
FAMILIES = {
    'vit':
    Entry('mmpretrain.models.backbones.vision_transformer.VisionTransformer',
          dict(VisionTransformer=('build', 'vit'), CLIPVisionTransformer=('build_clip', 'clip'))),
    'swin':
    Entry('mmpretrain.models.backbones.swin_transformer.SwinTransformer', dict(SwinTransformer=('build', 'swin'))),
    'videomae':
    Entry('mmaction.models.backbones.vit_mae.VisionTransformer', dict(VideoMAE=('build', 'videomae'))),
    'video_swin':
    Entry('mmaction.models.backbones.swin.SwinTransformer3D', dict(SwinTransformer3D=('build', 'video_swin'))),
    'timm_eva':
    Entry('timm.models.eva.Eva'),
    'hf_dinov3':
    Entry('transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTModel',
          towers=dict(dinov3_vit='DINOv3ViTModel')),
    'hf_videomae':
    Entry('transformers.models.videomae.modeling_videomae.VideoMAEModel', towers=dict(videomae='VideoMAEModel')),
    'hf_vjepa2':
    Entry('transformers.models.vjepa2.modeling_vjepa2.VJEPA2Model', towers=dict(vjepa2='VJEPA2Model')),
    'timm_vit':
    Entry('timm.models.vision_transformer.VisionTransformer'),
    'hf_vit':
    Entry(('transformers.models.vit.modeling_vit.ViTModel', 'transformers.models.dinov2.modeling_dinov2.Dinov2Model',
           'transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersModel',
           'transformers.models.vivit.modeling_vivit.VivitModel'),
          towers=dict(vit='ViTModel', dinov2='Dinov2Model', dinov2_with_registers='Dinov2WithRegistersModel',
                      vivit='VivitModel')),
    'hf_clip':
    Entry(('transformers.models.clip.modeling_clip.CLIPVisionModel',
           'transformers.models.siglip.modeling_siglip.SiglipVisionModel'),
          towers=dict(clip='CLIPVisionModel', clip_vision_model='CLIPVisionModel', siglip='SiglipVisionModel',
                      siglip_vision_model='SiglipVisionModel')),
}
#: Registered type -> architecture of its weights.
ARCH_OF_TYPE = {f'mmpetl.{kind}': arch for entry in FAMILIES.values() for kind, (_, arch) in entry.types.items()}
#: Architecture of weights -> registered type of the backbone that takes them.
TYPE_OF_ARCH = {arch: kind for kind, arch in ARCH_OF_TYPE.items()}
#: Upstream class -> registered types that attach to it.
TYPES_OF_CLASS = {
    entry.upstream: ' or '.join(f'mmpetl.{t}' for t in entry.types)
    for entry in FAMILIES.values() if entry.types
}


def family_named(name: str) -> Family:
    """The family described in ``mmpetl/backbones/<name>.py``."""
    return importlib.import_module(f'{__package__}.{name}').FAMILY


def family_name(backbone: Any) -> Optional[str]:
    """Name of a backbone object's family, or None."""
    names = {upstream: name for name, entry in FAMILIES.items() for upstream in entry.classes}
    # By name and over the whole ancestry: no upstream package is imported to ask, and sited classes are
    # found through the one they specialise.
    found = (names.get(f'{cls.__module__}.{cls.__qualname__}') for cls in type(backbone).__mro__)
    return next((name for name in found if name), None)


def family_of(backbone: nn.Module) -> Tuple[str, Family]:
    """Name and family of a backbone object.

    Raises:
        ValueError: If no family knows its class.
    """
    name = family_name(backbone)
    if name:
        return name, family_named(name)
    cls = type(backbone)
    known = sorted(upstream for entry in FAMILIES.values() for upstream in entry.classes)
    raise ValueError(
        f'{cls.__module__}.{cls.__qualname__} cannot be adapted; supported backbones: {", ".join(known)}')


def backbone_in(model: nn.Module) -> nn.Module:
    """The supported backbone in a model: the model itself, its ``backbone``, or the only one among its submodules.

    Raises:
        ValueError: If there is more than one (their names are listed).
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f'{model!r:.80} is no model: give a torch.nn.Module that holds a backbone')
    # The two usual cases first: walking all submodules of a large model takes time.
    for module in (model, getattr(model, 'backbone', None)):
        if family_name(module):
            return module
    found = {name: module for name, module in model.named_modules() if family_name(module)}
    if len(found) > 1:
        raise ValueError(f'{type(model).__name__} holds several backbones: attach to one of them, for example '
                         f'model.{next(iter(found))}; there are {", ".join(found)}')
    # The caller then refuses it by class and lists what is supported.
    return next(iter(found.values())) if found else getattr(model, 'backbone', model)
