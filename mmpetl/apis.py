# SPDX-License-Identifier: Apache-2.0
"""What a Python user calls: attach, summary, save_adapter, load_adapter, merge, push, disabled, infer, AdapterBank."""

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

from torch import nn

from .adapters.bank import AdapterBank
from .adapters.files import load_adapter, save_adapter
from .adapters.peft_folder import load_peft, save_peft
from .adapters.push import push
from .backbones.attach import attach as _attach
from .backbones.family import backbone_in
from .merging import MergeReport, merge
from .tuning import Summary, find_backbone, summary

__all__ = [
    'AdapterBank', 'MergeReport', 'Summary', 'attach', 'disabled', 'infer', 'load_adapter', 'load_peft', 'merge',
    'push', 'save_adapter', 'save_peft', 'summary'
]


def attach(model: nn.Module,
           petl: Sequence[Any] = (),
           tune: Sequence[str] = (),
           trunk: str = 'eval',
           with_cp: Optional[bool] = None,
           memory: str = 'standard',
           base_dtype: Any = None) -> nn.Module:
    """Attach methods to a model, in place, and freeze its base.

    Args:
        model: A supported backbone (of mmpretrain, mmaction2, timm or transformers), or any module that holds one as
            ``backbone`` or as its only one; what lies outside the backbone, and a timm model's ``head``, trains.
        petl: Method configs, for example ``[dict(type='LoRA', rank=8)]``.
        tune: Patterns of base parameters that also train.
        trunk: 'eval' or 'train', the mode of the frozen base while training.
        with_cp: Recompute each block in the backward pass.
        memory: 'standard', 'light' or 'lightest': what is computed again instead of kept.
        base_dtype: 'bf16' (or ``torch.bfloat16``) stores the frozen weights of the base in bfloat16: half the memory,
            and the bits that autocast would read. What trains stays float32. Outside autocast the backbone runs under
            its own. 'int8' and 'nf4' store the matrices of linear layers in 8 or 4 bits: a quarter or an eighth of the
            memory, and outputs that differ by the rounding.

    Returns:
        The same object.

    Raises:
        ValueError: One line that names what does not fit.
    """
    _attach(backbone_in(model), petl, tune, trunk, with_cp, memory, base_dtype=base_dtype)
    return model


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """``with mmpetl.disabled(model):`` the model runs on its base alone.

    Contexts of several threads wait for each other; a thread that runs the model beside such a context of another one
    is refused at once.

    Raises:
        RuntimeError: If another thread is running the model.
        ValueError: If nothing is attached.
    """
    backbone, _ = find_backbone(model)
    with backbone.petl.disabled():
        yield model


def infer(config: str,
          adapter: str,
          inputs: Any,
          device: Optional[str] = None,
          batch_size: int = 1,
          channel_order: str = 'rgb',
          cfg_options: Optional[Mapping[str, Any]] = None,
          force: bool = False,
          skip_unreadable: bool = False) -> List[Dict[str, Any]]:
    """Predictions of an adapter: the model, the test pipeline and the scores of ``tools/test.py``, without labels.

    Args:
        config: Config file with which the adapter was trained.
        adapter: Adapter file, checkpoint of the training run, or ``hf://user/repo`` on the hub; base and adapter are
            loaded and checked.
        inputs: One input or a list: paths of images or videos, uint8 arrays (H, W, 3) of images or (T, H, W, 3) of
            videos, Pillow pictures.
        device: For example 'cpu' or 'cuda:0'; None chooses.
        batch_size: Inputs that are computed together.
        channel_order: Order of the channels of arrays: 'rgb', as Pillow, PyAV and decord give them, or 'bgr', as
            OpenCV does.
        cfg_options: Overrides of the config.
        force: Take the adapter in spite of differences between it and the config, see :func:`load_adapter`.
        skip_unreadable: Leave out files that are there and cannot be read, each with a line in the log; ``input`` of
            the results says which are left.

    Returns:
        One dict per input that was read: ``input``, ``pred_scores`` (array (classes,)), ``pred_label``, ``pred_score``,
        and ``pred_class`` where the adapter knows the names of its classes; see :func:`mmpetl.training.infer.infer`.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If adapter and config do not belong together, an input cannot be read and must not be left out, or
            none can.
    """
    from .training.infer import infer as predict
    return predict(config, adapter, inputs, device, batch_size, channel_order, cfg_options, force, skip_unreadable)
