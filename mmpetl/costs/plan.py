# SPDX-License-Identifier: Apache-2.0
"""What a config costs before it is trained. Models are built on torch's meta device, so nothing is computed or
loaded."""

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..backbones.base_dtype import name_of
from ..compat import nonreentrant_checkpointing
from ..merging import probe_for
from ..training.build import build_model
from ..tuning import adapter_header, adapter_state, find_backbone, summary
from ..weights.adapter_file import DIGEST_KEY, METADATA_KEY
from .memory import on_meta, saved_bytes

#: Numbers that an optimizer keeps per trained parameter, by type; SGD's depends on its momentum.
OPTIMIZER_STATES = {
    'Adam': 2,
    'AdamW': 2,
    'NAdam': 2,
    'RAdam': 2,
    'Adamax': 2,
    'Lamb': 2,
    'Adagrad': 1,
    'RMSprop': 1,
    'Lion': 1,
    'SGD': 0
}
#: Transforms that set the size of the input -> their argument.
SIZES = {
    'Resize': 'scale',
    'RandomResizedCrop': 'scale',
    'CenterCrop': 'crop_size',
    'RandomCrop': 'crop_size',
    'ThreeCrop': 'crop_size',
    'ViewCrops': 'crop_size',
    'MultiScaleCrop': 'input_size'
}


@dataclass
class Plan:
    """Costs of one config. Bytes are of single precision, weights as they are stored.

    Attributes:
        config: Name of the config file.
        backbone: Registered type.
        methods: Methods and their arguments, and patterns of tuned base parameters.
        input: Shape of one input, (3, H, W) or (3, T, H, W).
        batch: Inputs per training step and process.
        base: Parameters of the base, those that train included.
        per_method: Trainable parameters per method.
        without_head: Trainable parameters of methods and base.
        head: Trainable parameters outside the backbone.
        total: All trainable parameters.
        percent: ``without_head`` in percent of ``base``.
        adapter_bytes: Size of the adapter file, without class names and preprocessing.
        gmac: Billions of multiply-add operations of the backbone for one input, attention included.
        gmac_base: The same without methods.
        weight_bytes: All parameters and buffers.
        activation_bytes: What the backbone keeps for the backward pass, for one batch, with fused attention.
        gradient_bytes: Gradients of the trainable parameters.
        optimizer_bytes: State of the optimizer.
    """
    config: str
    backbone: str
    methods: List[str]
    input: Tuple[int, ...]
    batch: int
    base: int
    per_method: Dict[str, int]
    without_head: int
    head: int
    total: int
    percent: float
    adapter_bytes: int
    gmac: float
    gmac_base: float
    weight_bytes: int
    activation_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    notes: List[str] = field(default_factory=list)

    @property
    def memory_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.gradient_bytes + self.optimizer_bytes


# -- what the config says ---------------------------------------------------------------------------------------------


def _train_dataset(cfg: Config) -> Mapping[str, Any]:
    """The innermost training data set."""
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    while isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    return dataset


def input_shape(cfg: Config, backbone: nn.Module) -> Tuple[int, ...]:
    """Shape of one training input: that of the training pipeline, else that for which the backbone was built."""
    built = tuple(probe_for(backbone, 1).shape[1:])
    size: Optional[Tuple[int, ...]] = None
    frames = built[1] if len(built) == 4 else 0
    for transform in _train_dataset(cfg).get('pipeline') or ():
        kind = str(transform.get('type')).split('.')[-1]
        value = transform.get(SIZES.get(kind, ''))
        if isinstance(value, int) or (isinstance(value,
                                                 (list, tuple)) and all(isinstance(v, int) and v > 0 for v in value)):
            if not transform.get('keep_ratio'):  # else the pictures decide, and a crop behind it says the size
                size = (value, value) if isinstance(value, int) else tuple(value)[::-1]  # mmcv: width, height
        frames = transform.get('clip_len', frames)
    if size is None:
        return built
    return (3, *size) if len(built) == 3 else (3, frames, *size)


def batch_size(cfg: Config) -> int:
    """Inputs per step and process: samples, times augmented copies, times clips.

    Raises:
        ValueError: If ``train_dataloader.batch_size`` is no number of samples.
    """
    dataset = _train_dataset(cfg)
    clips = [t['num_clips'] for t in dataset.get('pipeline') or () if isinstance(t.get('num_clips'), int)]
    batch = (cfg.get('train_dataloader') or {}).get('batch_size', 1)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f'train_dataloader.batch_size={batch!r:.80}: give a whole number from 1')
    return int(batch * (dataset.get('num_repeats') or 1) * (clips[0] if clips else 1))


def optimizer_states(cfg: Config) -> Tuple[int, List[str]]:
    """Numbers kept per trained parameter, and a note where the optimizer is not known."""
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    kind = str(optimizer.get('type', 'none')).split('.')[-1]
    if kind == 'SGD':
        return int(bool(optimizer.get('momentum', 0))), []
    if kind in OPTIMIZER_STATES:
        return OPTIMIZER_STATES[kind], []
    return 2, [f'optimizer {kind!r} is not known: two numbers per parameter assumed']


def _words(cfg: Mapping[str, Any]) -> str:
    arguments = ', '.join(f'{k}={v!r}' for k, v in cfg.items() if k not in ('type', 'name'))
    return f'{str(cfg.get("type")).split(".")[-1]}({arguments})'


# -- what the model costs ---------------------------------------------------------------------------------------------


@torch.no_grad()
def macs(backbone: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-add operations of one forward pass of one input, attention included.

    The fused attention kernels are no matrix products to the counter, so attention runs in its plain form.

    Args:
        backbone: Backbone on any device, the meta device included.
        shape: (3, H, W) or (3, T, H, W).
    """
    training = backbone.training
    backbone.eval()
    x = next(backbone.parameters()).new_empty(1, *shape)
    # The counter's module tracker fails on views of trainable parameters, such as prompts, where gradients are off.
    trainable = [p.requires_grad_(False) for p in backbone.parameters() if p.requires_grad]
    try:
        backbone(x)  # Prefix computes its keys and values in the first pass only
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            backbone(x)
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        backbone.train(training)
    return int(counter.get_total_flops()) // 2  # it counts multiplication and addition as two


def adapter_bytes(model: nn.Module) -> int:
    """Size of the adapter file that this model, possibly on the meta device, would be saved to."""
    state = adapter_state(model)
    petl = find_backbone(model)[0].petl
    petl.base_fingerprint = lambda: '0' * 64  # there is no content to hash
    try:
        header = adapter_header(model)
    finally:
        del petl.base_fingerprint
    header['counts']['stored'] = sum(t.numel() for t in state.values())
    digest = '0' * 64
    header['checksum'] = digest
    entries: Dict[str, Any] = {'__metadata__': {METADATA_KEY: json.dumps(header), DIGEST_KEY: digest}}
    at = 0
    for key, tensor in state.items():
        end = at + tensor.numel() * tensor.element_size()
        entries[key] = dict(dtype='F32', shape=list(tensor.shape), data_offsets=[at, end])
        at = end
    return 8 + len(json.dumps(entries, separators=(',', ':'))) + at


def plan(cfg: Config, name: str = '', shape: Optional[Sequence[int]] = None) -> Plan:
    """Costs of a config.

    Args:
        cfg: Config, see :func:`read_config`.
        name: What to call it.
        shape: Shape of one input in place of the config's, (3, H, W) or (3, T, H, W).

    Raises:
        ValueError: If the model has no attached backbone, or the input does not fit.
    """
    with on_meta():
        model = build_model(cfg, weights=False)
    backbone, _ = find_backbone(model)
    shape = tuple(shape) if shape else input_shape(cfg, backbone)
    if cfg.get('petl_checkpointing') or cfg.get('activation_checkpointing'):
        nonreentrant_checkpointing(model, cfg.get('petl_checkpointing') or cfg.activation_checkpointing)
    counted, batch = summary(model), batch_size(cfg)
    states, notes = optimizer_states(cfg)
    weights = _bytes(model.state_dict().values())
    if backbone.petl.stored:
        form = name_of(backbone.petl.stored_as)
        notes.append(f'base_dtype={form!r}: weights as stored; the rest in single precision')
        # State dicts have 8- and 4-bit weights as float32 ones.
        weights -= sum(4 * p.numel() - p.nbytes_stored for p in backbone.parameters() if hasattr(p, 'nbytes_stored'))
        backbone.petl.widen()  # the meta device has no autocast
    with _meta_inputs(name, shape):
        with_methods = macs(backbone, shape)
        with backbone.petl.disabled():
            plain = macs(backbone, shape)
        model.train()
        saved = saved_bytes(backbone, torch.empty(batch, *shape, device='meta'))
    tune = [f'tune={list(backbone.petl.tune)}'] if backbone.petl.tune else []
    return Plan(
        config=name,
        backbone=str(cfg.model.backbone.get('type')),
        methods=[_words(c) for c in backbone.petl.configs.values()] + tune,
        input=tuple(shape),
        batch=batch,
        base=counted.base,
        per_method=counted.methods,
        without_head=counted.without_head,
        head=counted.head,
        total=counted.total,
        percent=counted.percent,
        adapter_bytes=adapter_bytes(model),
        gmac=with_methods / 1e9,
        gmac_base=plain / 1e9,
        weight_bytes=weights,
        activation_bytes=saved,
        gradient_bytes=4 * counted.total,
        optimizer_bytes=4 * states * counted.total,
        notes=notes)


def kept(cfg: Config, shape: Sequence[int], batch: int, name: str = '') -> int:
    """Bytes that the backbone of a config keeps for the backward pass; :func:`plan` tells them with all else.

    Args:
        cfg: Config, see :func:`read_config`.
        shape: Shape of one input, (3, H, W) or (3, T, H, W).
        batch: Inputs of the step.
        name: What to call the config where the backbone does not run on such an input.
    """
    with on_meta():
        model = build_model(cfg, weights=False).train()
    find_backbone(model)[0].petl.widen()
    with _meta_inputs(name, shape):
        return saved_bytes(find_backbone(model)[0], torch.empty(batch, *shape, device='meta'))


@contextlib.contextmanager
def _meta_inputs(name: str, shape: Sequence[int]) -> Iterator[None]:
    """Name the config and the input where a forward pass fails."""
    try:
        yield
    except (RuntimeError, AssertionError, IndexError, NotImplementedError) as error:
        raise ValueError(f'{name}: the backbone does not run on an input of shape {tuple(shape)}: '
                         f'{" ".join(str(error).split())[:200]}; give its size with --input') from error


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
