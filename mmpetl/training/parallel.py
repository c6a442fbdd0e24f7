# SPDX-License-Identifier: Apache-2.0
"""FSDP and DeepSpeed for MMEngine's FlexibleRunner, with a frozen base and small methods in mind.

MMEngine's own strategies leave to their users: units of parameters that suit a frozen base, adapters of whole tensors,
gradient clipping over all shards, and resuming at the right epoch with an optimizer of torch >= 2.1. Configs:
``configs/_base_/strategies``.
"""

import copy
import importlib.util
import os
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from mmengine._strategy import BaseStrategy
from mmengine._strategy import DeepSpeedStrategy as UpstreamDeepSpeed
from mmengine._strategy import FSDPStrategy as UpstreamFSDP
from mmengine.device import get_device
from mmengine.dist import all_gather_object, get_rank
from mmengine.optim import BaseOptimWrapper, OptimWrapper
from mmengine.runner.checkpoint import _load_checkpoint, _load_checkpoint_to_model
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from ..backbones.base_dtype import name_of
from ..backbones.block import SitedBlock
from ..backbones.load_hook import taken_as_it_is
from ..compat import cut_config_texts, install_deepspeed_stub
from ..registry import FUNCTIONS, STRATEGIES


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Policy for FSDP: every block of the backbone is a unit.

    A frozen block then has no gradient and no optimizer state at all. Methods, head and what lies around the blocks
    form the rest.

    Args:
        module: A module of the model.
        recurse: Whether FSDP asks to look at the module's children rather than to wrap it.
        nonwrapped_numel: Numbers in the module, which do not matter here.
    """
    return recurse or isinstance(module, SitedBlock)


def check_base_dtype(model: Optional[nn.Module], strategy: str) -> None:
    """Refuse a base that is stored in two precisions where a strategy lays parameters (...) out in one.

    Raises:
        ValueError: Names the strategy and the option.
    """
    petls = [getattr(m, 'petl', None) for m in (model.modules() if model else ())]
    kinds = [name_of(petl.stored_as) for petl in petls if getattr(petl, 'stored', None)]
    if kinds:
        raise ValueError(f'{strategy}: base_dtype={kinds[0]!r} keeps norms and what trains in float32 beside weights '
                         'of fewer bits, which this strategy cannot lay out together: leave base_dtype out, or train '
                         "with base_dtype='bf16' and DDP")


class _SeveralProcesses(BaseStrategy):
    """Refuses to run in one process, and saves the right epoch: FlexibleRunner counts one too many when it saves after
    validation."""

    def _setup_env(self, *, launcher: Optional[str] = None, **kwargs: Any) -> None:
        if launcher in (None, 'none'):
            raise ValueError(
                f'{type(self).__name__} is for several processes: use bash tools/dist_train.sh CONFIG GPUS')
        super()._setup_env(launcher=launcher, **kwargs)

    def save_checkpoint(self, filename: str, *, extra_ckpt: Optional[dict] = None, **kwargs: Any) -> None:
        meta, length = (extra_ckpt or {}).get('meta', {}), self.dispatch_kwargs.get('epoch_length')
        if length and 'epoch' in meta:
            meta['epoch'] = min(meta['epoch'], meta['iter'] // length)
        super().save_checkpoint(filename, extra_ckpt=extra_ckpt, **kwargs)


class _ClipsShards(OptimWrapper):
    """Clips by the norm over the shards of all processes, where MMEngine takes the norm of the own ones."""

    sharded: FSDP

    def _clip_grad(self) -> None:
        options = {k: v for k, v in self.clip_grad_kwargs.items() if k in ('max_norm', 'norm_type')}
        norm = self.sharded.clip_grad_norm_(**options)
        self.message_hub.update_scalar(f'train/{self.grad_name}', float(norm))


@STRATEGIES.register_module()
class FSDPStrategy(_SeveralProcesses, UpstreamFSDP):
    """Fully sharded data parallelism: each process keeps a part of every block and gathers a block when it runs.

    Every process also keeps a copy of the model in the memory of the CPU, from which adapters are written with whole
    tensors. Works without a GPU, over gloo.

    Args:
        model_wrapper: Arguments of MMEngine's ``MMFullyShardedDataParallel``; the policy is :func:`wrap_blocks` unless
            given.
        **kwargs: Other arguments of MMEngine's ``FSDPStrategy``.

    Raises:
        ValueError: If frozen and trainable parameters would share one flat parameter, or checkpoints would be written
            in parts.
    """

    whole: nn.Module

    def __init__(self, *, model_wrapper: Optional[Dict[str, Any]] = None, **kwargs: Any) -> None:
        wrapper = dict(type='MMFullyShardedDataParallel', auto_wrap_policy='mmpetl.wrap_blocks', use_orig_params=True)
        wrapper.update(model_wrapper or {})
        if not wrapper['use_orig_params']:
            raise ValueError(
                'FSDPStrategy: use_orig_params=False gives frozen and trainable parameters one flat parameter; leave '
                'it out'
            )
        if kwargs.setdefault('state_dict_cfg', 'full') != 'full':
            raise ValueError("FSDPStrategy: adapters need whole tensors, so state_dict_cfg must be 'full'")
        if get_device() == 'cpu':
            wrapper.setdefault('device_id', 'cpu')
        super().__init__(model_wrapper=wrapper, **kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:  # type: ignore[override]
        check_base_dtype(model, type(self).__name__)
        self.whole = copy.deepcopy(model).cpu()
        model = super()._wrap_model(model)  # type: ignore[func-returns-value]
        units = [unit for unit in FSDP.fsdp_modules(model) if unit is not model]
        frozen = sum(not any(p.requires_grad for p in unit.parameters()) for unit in units)
        self.logger.info(f'FSDP: {len(units)} units, {frozen} of them frozen, and the rest of the model')
        return model

    @contextmanager
    def _pairs(self, write: bool) -> Iterator[List[Tuple[Tensor, Tensor]]]:
        """Gather all tensors; pairs of a tensor of the sharded model and of the whole copy. All processes must enter
        together.

        Torch's own state dict of a sharded model is no help: on the CPU it reads freed memory (torch 2.12).
        """
        with torch.no_grad(), FSDP.summon_full_params(
                self.model, writeback=write, offload_to_cpu=get_device() != 'cpu'):
            own = dict([*self.model.named_parameters(), *self.model.named_buffers()])
            whole = dict([*self.whole.named_parameters(), *self.whole.named_buffers()])
            yield [(tensor, whole[name.replace('_fsdp_wrapped_module.', '')]) for name, tensor in own.items()]

    def gathered(self) -> nn.Module:
        """The copy of the model with whole tensors, brought up to date; all processes must call it together."""
        with self._pairs(write=False) as pairs:
            for own, whole in pairs:
                whole.copy_(own)
        return self.whole

    def model_state_dict(self) -> dict:
        """Whole tensors, in every process."""
        return self.gathered().state_dict()

    def load_model_state_dict(self,
                              state_dict: dict,
                              *,
                              strict: bool = False,
                              revise_keys: list = [(r'^module.', '')]) -> None:  # noqa: B006
        """Load through the whole copy, whose hooks need whole tensors: they find the base of an adapter and check
        it."""
        _load_checkpoint_to_model(self.gathered(), state_dict, strict=strict, revise_keys=revise_keys)
        with self._pairs(write=True) as pairs:
            for own, whole in pairs:
                own.copy_(whole)

    def _held(self) -> List[Tuple[str, Tensor]]:
        """Name and shard of every parameter of the optimizer, in its order."""
        names = {id(p): name.replace('_fsdp_wrapped_module.', '') for name, p in self.model.named_parameters()}
        return [(names[id(p)], p) for group in self.optim_wrapper.optimizer.param_groups for p in group['params']]

    def optim_state_dict(self) -> dict:
        """The optimizer's state with whole tensors, as an optimizer without shards has it, in every process.

        Torch's own function mixes up the tensors on the CPU (torch 2.12), and MMEngine hands it arguments in an older
        order.
        """
        state, sizes = self.optim_wrapper.state_dict(), {n: p.numel() for n, p in self.whole.named_parameters()}
        held = self._held()
        shards = all_gather_object({name: state['state'].get(i, {}) for i, (name, _) in enumerate(held)})
        whole: Dict[int, Dict[str, Any]] = {}
        for i, (name, _) in enumerate(held):
            parts = [shard[name] for shard in shards if shard[name]]
            whole[i] = {}
            for key, first in (parts[0] if parts else {}).items():
                whole[i][key] = first
                if isinstance(first, Tensor) and first.dim():
                    # replicas come last
                    flat = torch.cat([part[key].detach().cpu().flatten() for part in parts])[:sizes[name]]
                    whole[i][key] = flat.view_as(self.whole.get_parameter(name))
        return {**state, 'state': whole}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Give every process its shards of the state that :meth:`optim_state_dict` returns."""
        # A shard begins where those of the processes before it end.
        held, before = self._held(), all_gather_object({name: p.numel() for name, p in self._held()})[:get_rank()]
        own: Dict[int, Dict[str, Any]] = {}
        for i, (name, shard) in enumerate(held):
            start = sum(sizes[name] for sizes in before) % self.whole.get_parameter(name).numel()
            if shard.numel() and i in state_dict['state']:
                own[i] = {
                    key:
                    value.flatten()[start:start + shard.numel()].view_as(shard)
                    if isinstance(value, Tensor) and value.dim() else value
                    for key, value in state_dict['state'][i].items()
                }
        self.optim_wrapper.load_state_dict({**state_dict, 'state': own})

    def build_optim_wrapper(self, optim_wrapper: Any, model: Optional[nn.Module] = None) -> BaseOptimWrapper:
        """As upstream; clipping by norm counts the shards of all processes."""
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        if getattr(wrapper, 'clip_grad_kwargs', None) and 'max_norm' in wrapper.clip_grad_kwargs:
            wrapper.__class__ = type(type(wrapper).__name__, (_ClipsShards, type(wrapper)), {})
            wrapper.sharded = model  # type: ignore[attr-defined]
        return wrapper


#: Keys of an optimizer wrapper that mixed precision brings along.
_AMP_KEYS = ('loss_scale', 'dtype', 'use_fsdp')


@STRATEGIES.register_module()
class DeepSpeedStrategy(_SeveralProcesses, UpstreamDeepSpeed):
    """DeepSpeed's ZeRO stages 1 and 2: optimizer state and gradients are shared out, parameters stay whole.

    The optimizer wrapper of an ordinary config is taken over: clipping, accumulation and ``--amp`` (DeepSpeed's
    ``torch_autocast``, in bfloat16) become entries of DeepSpeed's config, and ``auto_scale_lr`` works. DeepSpeed's
    checkpoints leave the frozen base out.

    Args:
        zero_optimization: See DeepSpeed; stage 2 unless given.
        exclude_frozen_parameters: Leave frozen parameters out of checkpoints.
        **kwargs: Other arguments of MMEngine's ``DeepSpeedStrategy``.

    Raises:
        ModuleNotFoundError: If DeepSpeed is not installed.
        ValueError: If parameters would be shared out (stage 3) or cast to half precision, after which the base is
            another one.
    """

    def __init__(self,
                 *,
                 zero_optimization: Optional[dict] = None,
                 exclude_frozen_parameters: bool = True,
                 **kwargs: Any) -> None:
        if importlib.util.find_spec('deepspeed') is None:
            raise ModuleNotFoundError(
                'DeepSpeedStrategy needs the package deepspeed, which is not installed: run pip install deepspeed, '
                'or take configs/_base_/strategies/fsdp.py, which needs none')
        zero = dict(zero_optimization or dict(stage=2))
        if zero.get('stage', 0) > 2:
            raise ValueError(
                'DeepSpeedStrategy: stage 3 shares out the base, adapters need it whole; use stage 2, or FSDPStrategy')
        for key in ('fp16', 'bf16', 'amp'):
            if (kwargs.get(key) or {}).get('enabled'):
                raise ValueError(
                    f'DeepSpeedStrategy: {key} casts the frozen base, so that the adapter would belong to another '
                    f'base; '
                    'use --amp (torch_autocast)')
        install_deepspeed_stub()
        super().__init__(zero_optimization=zero, exclude_frozen_parameters=exclude_frozen_parameters, **kwargs)
        self.config.setdefault('zero_allow_untested_optimizer', True)  # SGD, for one
        self.config.setdefault('train_micro_batch_size_per_gpu', 1)  # known when training starts

    def _setup_distributed(self,
                           launcher: Optional[str] = None,
                           backend: str = 'nccl',
                           **kwargs: Any) -> None:  # type: ignore[override]
        if get_device() == 'cpu':
            backend = 'gloo'
        super()._setup_distributed(launcher, backend, **kwargs)

    def build_optim_wrapper(self, optim_wrapper: Any, model: Optional[nn.Module] = None) -> BaseOptimWrapper:
        """Move to DeepSpeed's config what its optimizer wrapper does not take, then build, then scale the learning
        rate."""
        check_base_dtype(model, type(self).__name__)
        self.config['train_micro_batch_size_per_gpu'] = self.dispatch_kwargs.get('train_micro_batch_size_per_gpu', 1)
        if isinstance(optim_wrapper, dict):
            cfg = dict(optim_wrapper)
            if str(cfg.get('type', '')).endswith('AmpOptimWrapper'):
                self.config['torch_autocast'] = dict(enabled=True, dtype='bfloat16')
            clip = cfg.pop('clip_grad', None)
            if clip:
                if 'max_norm' not in clip or clip.get('norm_type', 2) != 2:
                    raise ValueError(
                        f'DeepSpeedStrategy clips by the 2-norm only: write clip_grad=dict(max_norm=...), got '
                        f'{dict(clip)}'
                    )
                self.config['gradient_clipping'] = clip['max_norm']
            self.config['gradient_accumulation_steps'] = cfg.pop('accumulative_counts',
                                                                 self.config['gradient_accumulation_steps'])
            optim_wrapper = {**{k: v for k, v in cfg.items() if k not in _AMP_KEYS}, 'type': 'DeepSpeedOptimWrapper'}
        self.optim_wrapper = super().build_optim_wrapper(optim_wrapper, model)
        self._scale_lr()
        return self.optim_wrapper

    def load_checkpoint(
            self,
            filename: str,
            *,
            strict: bool = False,
            revise_keys: list = [(r'^module.', '')],  # noqa: B006
            callback: Optional[Callable] = None,
            **kwargs: Any) -> dict:
        """Load a folder that DeepSpeed wrote, or an adapter or checkpoint file as other strategies do."""
        if os.path.isdir(filename):
            with taken_as_it_is(self.model.module):
                return super().load_checkpoint(
                    filename, strict=strict, revise_keys=revise_keys, callback=callback, **kwargs)
        self.logger.info(f'Load checkpoint from {filename}')
        checkpoint = _load_checkpoint(filename, map_location='cpu')
        if callback is not None:
            callback(checkpoint)
        _load_checkpoint_to_model(
            self.model.module, checkpoint.pop('state_dict'), strict=strict, revise_keys=revise_keys)
        return checkpoint

    def resume(self, filename: str, **kwargs: Any) -> dict:
        """Resume from a folder that DeepSpeed wrote: the frozen base is not in it and comes from where ``init_cfg``
        found it."""
        if not os.path.isdir(filename):
            raise ValueError(f'DeepSpeedStrategy resumes from a folder that DeepSpeed wrote, and {filename} is none')
        with taken_as_it_is(self.model.module):
            return cut_config_texts(super().resume(filename, **kwargs))
