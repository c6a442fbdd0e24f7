"""What a Python user calls: attach, summary, save_adapter, load_adapter, merge, disabled, infer, AdapterBank."""

from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence

from torch import nn

from .adapters.bank import AdapterBank
from .adapters.files import load_adapter, save_adapter
from .backbones.attach import attach as _attach
from .tuning import MergeReport, Summary, find_backbone, merge, summary

__all__ = [
    'AdapterBank', 'MergeReport', 'Summary', 'attach', 'disabled', 'infer', 'load_adapter', 'merge', 'save_adapter',
    'summary'
]


def attach(model: nn.Module,
           petl: Sequence[Any] = (),
           tune: Sequence[str] = (),
           trunk: str = 'eval',
           with_cp: Optional[bool] = None,
           memory: str = 'standard') -> nn.Module:
    """Attach methods to a model, in place, and freeze its trunk.

    Args:
        model: A supported backbone, or a classifier or recognizer that holds one as ``backbone``; what lies outside the
            backbone trains.
        petl: Method configs, for example ``[dict(type='LoRA', rank=8)]``.
        tune: Patterns of trunk parameters that also train.
        trunk: 'eval' or 'train', the mode of the frozen trunk while training.
        with_cp: Recompute each block in the backward pass.
        memory: 'standard', 'light' or 'lightest': what is computed again instead of kept.

    Returns:
        The same object.

    Raises:
        ValueError: One line that names what does not fit.
    """
    _attach(getattr(model, 'backbone', model), petl, tune, trunk, with_cp, memory)
    return model


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """``with mmpetl.disabled(model):`` the model runs on its plain trunk.

    Raises:
        ValueError: If nothing is attached.
    """
    backbone, _ = find_backbone(model)
    with backbone.petl.disabled():
        yield model


def infer(config: str, adapter: str, inputs: Any, device: Optional[str] = None, **kwargs: Any) -> List[Any]:
    """Predictions of an adapter, by the upstream inferencers; base and adapter are loaded and checked.

    Args:
        config: Config file with which the adapter was trained.
        adapter: Adapter file (or checkpoint).
        inputs: One or several image paths or arrays, or video paths.
        device: For example 'cpu' or 'cuda:0'; None chooses.
        **kwargs: Passed on to the inferencer's call.

    Returns:
        One result per input, as mmpretrain's or mmaction2's inferencer gives it.
    """
    from mmengine.config import Config
    cfg = Config.fromfile(config)
    if cfg.get('default_scope') == 'mmaction':
        from mmaction.apis.inferencers import ActionRecogInferencer
        return ActionRecogInferencer(config, adapter, device=device)(inputs, **kwargs)['predictions']
    from mmpretrain import ImageClassificationInferencer
    return ImageClassificationInferencer(config, adapter, device=device)(inputs, **kwargs)
