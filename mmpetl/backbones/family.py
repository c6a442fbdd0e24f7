"""What ``attach`` must know of a kind of backbone: a description, filled in once per backbone file."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Tuple

from torch import Tensor, nn

from ..sites import BlockSpec


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True)
class Family:
    """One kind of backbone.

    Attributes:
        name: Short name, also the architecture name of the weight converters.
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
    check: Callable[[nn.Module], None] = _nothing
    check_prompts: Callable[[nn.Module, bool], None] = _nothing
