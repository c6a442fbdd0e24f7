# SPDX-License-Identifier: Apache-2.0
"""What ``attach`` must know of a kind of backbone: a description, filled in once per backbone file."""

import importlib
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Optional, Set, Tuple, Union

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
        embed_class: Class that replaces the patch embedding where others than it have its class too.
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
        head: Names of modules that are the model's head: they train, as everything outside a backbone does.
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
    embed_class: Optional[type] = None
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

    def in_head(self, name: str) -> bool:
        """Whether a parameter of the backbone, by its name there, belongs to a head that it holds itself."""
        return name.startswith(tuple(f'{head}.' for head in self.head))

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
    'deit3':
    Entry('mmpretrain.models.backbones.deit3.DeiT3', dict(DeiT3=('build', 'deit3'))),
    'beit':
    Entry('mmpretrain.models.backbones.beit.BEiTViT', dict(BEiTViT=('build', 'beit'))),
    'eva02':
    Entry('mmpretrain.models.backbones.vit_eva02.ViTEVA02', dict(ViTEVA02=('build', 'eva02'))),
    'swin_v2':
    Entry('mmpretrain.models.backbones.swin_transformer_v2.SwinTransformerV2',
          dict(SwinTransformerV2=('build', 'swin_v2'))),
    'mvit':
    Entry('mmpretrain.models.backbones.mvit.MViT', dict(MViT=('build', 'mvit'))),
    'video_mvit':
    Entry('mmaction.models.backbones.mvit.MViT', dict(VideoMViT=('build', 'video_mvit'))),
    'uniformer_v2':
    Entry('mmaction.models.backbones.uniformerv2.UniFormerV2', dict(UniFormerV2=('build', 'uniformer_v2'))),
    'videomae':
    Entry('mmaction.models.backbones.vit_mae.VisionTransformer', dict(VideoMAE=('build', 'videomae'))),
    'video_swin':
    Entry('mmaction.models.backbones.swin.SwinTransformer3D', dict(SwinTransformer3D=('build', 'video_swin'))),
    'timm_eva':
    Entry('timm.models.eva.Eva'),
    'timm_swin':
    Entry(('timm.models.swin_transformer.SwinTransformer', 'timm.models.swin_transformer_v2.SwinTransformerV2')),
    'timm_hiera':
    Entry('timm.models.hiera.Hiera'),
    'hf_dinov3':
    Entry(('transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTModel',
           'transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTBackbone'),
          towers=dict(dinov3_vit='DINOv3ViTModel')),
    'hf_videomae':
    Entry('transformers.models.videomae.modeling_videomae.VideoMAEModel', towers=dict(videomae='VideoMAEModel')),
    'hf_vjepa2':
    Entry('transformers.models.vjepa2.modeling_vjepa2.VJEPA2Model', towers=dict(vjepa2='VJEPA2Model')),
    'hf_timesformer':
    Entry('transformers.models.timesformer.modeling_timesformer.TimesformerModel',
          towers=dict(timesformer='TimesformerModel')),
    'hf_swin':
    Entry(('transformers.models.swin.modeling_swin.SwinModel',
           'transformers.models.swinv2.modeling_swinv2.Swinv2Model'),
          towers=dict(swin='SwinModel', swinv2='Swinv2Model')),
    'timm_vit':
    Entry('timm.models.vision_transformer.VisionTransformer'),
    'hf_vit':
    Entry(('transformers.models.vit.modeling_vit.ViTModel', 'transformers.models.deit.modeling_deit.DeiTModel',
           'transformers.models.vit_msn.modeling_vit_msn.ViTMSNModel',
           'transformers.models.ijepa.modeling_ijepa.IJepaModel',
           'transformers.models.dinov2.modeling_dinov2.Dinov2Model',
           'transformers.models.dinov2.modeling_dinov2.Dinov2Backbone',
           'transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersModel',
           'transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersBackbone',
           'transformers.models.vivit.modeling_vivit.VivitModel'),
          towers=dict(vit='ViTModel', deit='DeiTModel', vit_msn='ViTMSNModel', ijepa='IJepaModel', dinov2='Dinov2Model',
                      dinov2_with_registers='Dinov2WithRegistersModel', vivit='VivitModel')),
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


_POOLED = ('keys and values are pooled between projection and attention, where no point stands, and the stream '
           'changes its length inside blocks')
_NAFLEX = 'every picture may have a grid of its own, and padding that attention is to ignore (NaFlex)'
#: Upstream class that people ask for and that stays undefined -> path of the module that is not known, and why.
UNDEFINED = {
    'mmaction.models.backbones.timesformer.TimeSformer':
    ('transformer_layers', 'its layers are built from parts of mmcv; take the same weights as TimesformerModel of '
     'transformers (mmpetl.HF)'),
    'timm.models.mvitv2.MultiScaleVit': ('stages.0.blocks.0.attn', _POOLED),
    'timm.models.naflexvit.NaFlexVit': ('embeds', f'{_NAFLEX}; take a vit_* of one size'),
    'timm.models.beit.Beit':
    ('blocks.0.attn', "its biases of places are not known here; take mmpretrain's class and files (mmpetl.BEiTViT)"),
    'transformers.models.beit.modeling_beit.BeitModel':
    ('layers.0.attention',
     "its biases of places are not known here; take mmpretrain's class and files (mmpetl.BEiTViT)"),
    'transformers.models.siglip2.modeling_siglip2.Siglip2VisionModel':
    ('embeddings', f'{_NAFLEX}; files of SigLIP 2 for one size open as SiglipVisionModel'),
    'transformers.models.vit_mae.modeling_vit_mae.ViTMAEModel':
    ('embeddings', 'it hides and shuffles patches, for pre-training; open the same files as ViTModel'),
    'transformers.models.hiera.modeling_hiera.HieraModel':
    ('encoder', 'its tokens are not in the order of the grid; take hiera_* of timm'),
    'open_clip.transformer.VisionTransformer':
    ('transformer', 'it attends by a module of torch; take the same weights as vit_*_clip_* of timm or as '
     'CLIPVisionModel of transformers'),
}


def maps_have_no_prompts(model: nn.Module, pooled: bool) -> None:
    """Refuse prompts in the stream, as ``check_prompts`` of models that read a grid off every stream.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f'{type(model).__name__} hands maps from block to block, so prompts cannot travel in the stream: '
                     'bring them before every block (deep=True) and leave pool_prompts out')


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
    for inside, module in backbone.named_modules() if isinstance(backbone, nn.Module) else ():
        where = _place_of(module)
        if where in UNDEFINED:
            path, why = UNDEFINED[where]
            path, found = f'{inside}.{path}'.lstrip('.'), type(module.get_submodule(path)).__name__
            raise ValueError(f'{where} cannot be adapted: {path} ({found}): {why}')
    where = _place_of(backbone)
    known: Dict[str, Set[str]] = {}
    for upstream in (upstream for entry in FAMILIES.values() for upstream in entry.classes):
        known.setdefault(upstream.split('.')[0], set()).add(upstream.split('.')[-1])
    # Of the library at hand alone, where it is one of these: the whole list is long.
    library = where.split('.')[0]
    known = {library: known[library]} if library in known else known
    listed = '; of '.join(f'{library}: {", ".join(sorted(names))}' for library, names in sorted(known.items()))
    raise ValueError(f'{where} cannot be adapted. Take a backbone, or a model that holds one, of {listed}')


def _place_of(module: Any) -> str:
    """Class of a module, with the file that defines it."""
    return f'{type(module).__module__}.{type(module).__qualname__}'


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
