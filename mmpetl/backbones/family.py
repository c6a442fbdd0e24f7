"""What ``attach`` must know of a kind of backbone: a description, filled in once per backbone file."""

import importlib
from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Optional, Tuple

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
        embed_parameters: Backbone -> weight and bias that a scale and shift after the patch embedding fold into.
        fold_embed_shift: Where the embedding has no bias: backbone and shift (C) -> what to write, and its new value;
            None if impossible.
        final_norm: Backbone -> last LayerNorm, or None.
        final_class: Class that replaces the last LayerNorm.
        merges_prompts: Whether that class averages prompts with the grid tokens (else the backbone's own pooling sees
            them).
        pools_prompts: Backbone -> whether its published prompt form pools prompts.
        tokens_read: Backbone -> how many leading tokens its output reads after the last block; None: all.
        side_class: Upstream backbone class and its subclass for methods with ``on_side``; None where that is undefined.
        arch_of: Backbone -> architecture of its weights, a name of the weight converters.
        global_attention: Whether every token sees every other, so that each sample may have its own extra keys.
        check: Raises ValueError when the backbone was built in a way that cannot be specialised.
        check_prompts: Raises ValueError when prompts in the stream do not fit the backbone's outputs.
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
    side_class: Optional[Tuple[type, type]] = None
    arch_of: Optional[Callable[[nn.Module], str]] = None
    global_attention: bool = True
    check: Callable[[nn.Module], None] = _nothing
    check_prompts: Callable[[nn.Module, bool], None] = _nothing

    def arch(self, backbone: nn.Module) -> str:
        """Architecture of the weights of a backbone."""
        return self.name if self.arch_of is None else self.arch_of(backbone)


@dataclass(frozen=True)
class Entry:
    """One row of the table of families: what is known without importing an upstream package.

    Attributes:
        upstream: Class of the backbones, with its module.
        types: Registered type -> (function of the family's file that builds it, architecture of its weights).
    """
    upstream: str
    types: Mapping[str, Tuple[str, str]]


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
}
#: Architecture of weights -> registered type of the backbone that takes them.
TYPE_OF_ARCH = {arch: f'mmpetl.{kind}' for entry in FAMILIES.values() for kind, (_, arch) in entry.types.items()}
#: Upstream class -> registered types that attach to it.
TYPES_OF_CLASS = {entry.upstream: ' or '.join(f'mmpetl.{t}' for t in entry.types) for entry in FAMILIES.values()}


def family_named(name: str) -> Family:
    """The family described in ``mmpetl/backbones/<name>.py``."""
    return importlib.import_module(f'{__package__}.{name}').FAMILY


def family_of(backbone: nn.Module) -> Tuple[str, Family]:
    """Name and family of a backbone object.

    Raises:
        ValueError: If no family knows its class.
    """
    names = {entry.upstream: name for name, entry in FAMILIES.items()}
    for cls in type(backbone).__mro__:
        name = names.get(f'{cls.__module__}.{cls.__qualname__}')
        if name:
            return name, family_named(name)
    cls = type(backbone)
    raise ValueError(
        f'{cls.__module__}.{cls.__qualname__} cannot be adapted; supported backbones: {", ".join(sorted(names))}')
