# SPDX-License-Identifier: Apache-2.0
"""Checks of one method on one backbone on any device: 'cuda', 'cpu', and 'meta' for what only asks where tensors lie.

tests/gpu runs them under pytest, benchmarks/gpu_check.py within a budget of time. A check returns a figure or nothing,
and raises AssertionError.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch
from cases import PAIRS, Backbone, Case, features, perturb
from torch import Tensor, nn

import mmpetl
from mmpetl.training.graphs import WARM_UP, GraphedForward

#: Rows of the default suite: one method per kind of point and backbone.
FEW = ('LoRA-vit', 'PATT-video_swin', 'SynQT-videomae')


def build(case: Case, backbone: Backbone, device: str = 'cpu', **options: Any) -> nn.Module:
    """A model whose methods act, in evaluation mode; the same values on every device."""
    torch.manual_seed(0)
    model: nn.Module = backbone.build(case.petl, **options)
    perturb(model.petl)
    model.eval()  # returns nothing in mmpretrain
    return model.to(device)


def loss_of(output: Any) -> Tensor:
    """A scalar in which every number of the feature has its own weight."""
    y = features(output).float()
    return (y * torch.linspace(-1, 1, y.numel(), device=y.device).reshape(y.shape)).sum()


def gradients(model: nn.Module) -> Tensor:
    """All gradients of the methods in one vector, on the CPU."""
    return torch.cat([p.grad.float().flatten().cpu() for p in model.petl.parameters() if p.grad is not None])


def off_device(model: nn.Module, device: str) -> List[str]:
    """Names of parameters and buffers that do not lie on a device."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in named if tensor.device.type != torch.device(device).type]


def near(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> float:
    """Relative distance of two tensors.

    Raises:
        AssertionError: If it is larger than ``tolerance``, or not a number.
    """
    found, wanted = found.detach().float().cpu(), wanted.detach().float().cpu()
    error = ((found - wanted).norm() / wanted.norm().clamp_min(1e-12)).item()
    assert error <= tolerance, f'{what}: relative error {error:.1e}, allowed {tolerance:.0e}'
    return error


def strict(model: nn.Module, x: Tensor) -> Tensor:
    """The feature, without gradients."""
    with torch.no_grad():
        return features(model(x)).clone()


# -- checks -----------------------------------------------------------------------------------------------------------


def placement(case: Case, backbone: Backbone, device: str) -> None:
    """``attach`` to a model that lies on the device already: all that it brings lies there too, and it trains."""
    if 'frames' in backbone.kwargs:  # which upstream's model does not know
        model = backbone.build(case.petl).to(device)
    else:
        model = mmpetl.attach(backbone.build_upstream().to(device), case.petl)
    assert not off_device(model, device), f'attach left {off_device(model, device)[:3]} elsewhere'
    model.train()
    loss_of(model(backbone.inputs().to(device))).backward()
    odd = [n for n, p in model.petl.named_parameters() if p.grad is not None and p.grad.device != p.device]
    assert not odd, f'gradients elsewhere: {odd[:3]}'
    with mmpetl.disabled(model):
        model(backbone.inputs().to(device))


def equal(case: Case, backbone: Backbone, device: str) -> float:
    """Outputs and gradients in fp32 are the CPU's."""
    here, x = build(case, backbone), backbone.inputs()
    there = copy.deepcopy(here).to(device)
    loss_of(here(x)).backward()
    loss_of(there(x.to(device))).backward()
    near(strict(there, x.to(device)), strict(here, x), 2e-5, 'outputs')
    return near(gradients(there), gradients(here), 2e-4, 'gradients')


def _amp(case: Case, backbone: Backbone, device: str, dtype: torch.dtype, tolerance: float) -> float:
    model, x = build(case, backbone, device), backbone.inputs().to(device)
    full = strict(model, x)
    with torch.autocast(device, dtype):
        error = near(strict(model, x), full, tolerance, f'outputs in {dtype}')
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    optimizer = torch.optim.AdamW([p for p in model.petl.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(20):  # the scale begins at 65536 and is halved until the gradients are finite
        optimizer.zero_grad()
        with torch.autocast(device, dtype):
            loss = loss_of(model(x))
        scaler.scale(loss).backward()
        fine = bool(torch.isfinite(gradients(model)).all())
        scaler.step(optimizer)
        scaler.update()
        if fine:
            break
    assert fine, f'gradients in {dtype} are not finite'
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.petl.parameters() if p.grad is not None)
    return error


def bf16(case: Case, backbone: Backbone, device: str) -> float:
    """bf16 autocast: outputs near those of fp32, a step with finite gradients, methods and gradients in fp32."""
    return _amp(case, backbone, device, torch.bfloat16, 0.1)


def fp16(case: Case, backbone: Backbone, device: str) -> float:
    """fp16 autocast with a gradient scaler."""
    return _amp(case, backbone, device, torch.float16, 0.03)


def memory(case: Case, backbone: Backbone, device: str) -> float:
    """Every memory setting has the gradients of the standard one."""
    wanted, worst = None, 0.
    for options in ({}, dict(with_cp=True), dict(memory='light'), dict(memory='lightest')):
        model = build(case, backbone, device, **options)
        model.train()
        torch.manual_seed(3)
        loss_of(model(backbone.inputs().to(device))).backward()
        wanted = gradients(model) if wanted is None else wanted
        worst = max(worst, near(gradients(model), wanted, 2e-5, f'gradients with {options}'))
    return worst


def files(case: Case, backbone: Backbone, device: str) -> None:
    """A file saved from the device acts the same in a model on the device, and in one on the CPU."""
    model, x = build(case, backbone, device), backbone.inputs().to(device)
    wanted = strict(model, x)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / 'a.safetensors')
        mmpetl.save_adapter(model, path)
        for place in {device, 'cpu'}:
            torch.manual_seed(0)
            other = backbone.build(case.petl).to(place)
            other.eval()
            mmpetl.load_adapter(other, path)
            assert not off_device(other, place), f'load_adapter left {off_device(other, place)[:3]} elsewhere'
            near(strict(other, x.to(place)), wanted, 2e-5, f'outputs of the file on {place}')


def merged(case: Case, backbone: Backbone, device: str) -> float:
    """A merged model gives the same outputs."""
    model, x = build(case, backbone, device), backbone.inputs().to(device)
    wanted = strict(model, x)
    mmpetl.merge(model, verify=True)
    return near(strict(model, x), wanted, 5e-5, 'outputs of the merged model')


def bank(case: Case, backbone: Backbone, device: str) -> None:
    """Two adapters of a bank on the device, from files, hot-swapped; disabled."""
    model, x = build(case, backbone, device), backbone.inputs().to(device)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / 'a.safetensors')
        mmpetl.save_adapter(model, path)
        wanted = strict(model, x)
        adapters = mmpetl.AdapterBank(model, 'one')
        adapters.add_file('two', path)
        near(strict(model, x), wanted, 2e-5, 'outputs of the second adapter')
        perturb(model.petl)
        adapters.hot_swap('two', path)
        near(strict(model, x), wanted, 2e-5, 'outputs after the hot swap')
        with adapters.disabled():
            strict(model, x)
    assert not off_device(model, device), f'the bank left {off_device(model, device)[:3]} elsewhere'


def mixed(case: Case, backbone: Backbone, device: str) -> None:
    """A batch whose inputs have adapters of their own."""
    model, x = build(case, backbone, device), backbone.inputs().to(device)
    wanted = strict(model, x)
    adapters = mmpetl.AdapterBank(model, 'one')
    with torch.no_grad():
        found = adapters.predict(x, ['one', None])
    near(features(found[0]), wanted[0], 2e-5, 'outputs of a mixed batch')


def graph(case: Case, backbone: Backbone, device: str) -> float:
    """One compiled graph, with inductor on a GPU: gradients of the model as it is."""
    model, x = build(case, backbone, device), backbone.inputs().to(device)
    compiled = copy.deepcopy(model)
    torch._dynamo.reset()
    run = torch.compile(compiled, fullgraph=True, backend='inductor' if device == 'cuda' else 'eager')
    loss_of(model(x)).backward()
    loss_of(run(x)).backward()
    return near(gradients(compiled), gradients(model), 1e-3, 'gradients of the compiled model')


def syncs(case: Case, backbone: Backbone, device: str) -> None:
    """A training step under bf16 autocast in which the host waits for nothing of the GPU."""
    model, x = build(case, backbone, device), backbone.inputs().to(device)
    model.train()
    for mode in ('default', 'error'):  # caches are filled in the first pass
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with torch.autocast(device, torch.bfloat16):
                loss = loss_of(model(x))
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode('default')


def captured(case: Case, backbone: Backbone, device: str) -> float:
    """A captured CUDA graph under bf16 autocast has the gradients of the model as it is."""
    model, x = build(case, backbone, device), backbone.inputs().to(device)
    model.train()
    graphed, lines = copy.deepcopy(model), []  # type: nn.Module, List[str]
    graphed.forward = GraphedForward(graphed, lines.append, torch.cuda.make_graphed_callables)
    for one, steps in ((model, 1), (graphed, WARM_UP + 2)):
        for _ in range(steps):
            one.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16):
                loss = loss_of(one(x))
            loss.backward()
    assert len(lines) == 1 and 'is captured' in lines[0], lines
    return near(gradients(graphed), gradients(model), 1e-2, 'gradients of the captured model')


Check = Callable[[Case, Backbone, str], Any]
CHECKS: Dict[str, Check] = {
    check.__name__: check for check in (placement, equal, bf16, fp16, memory, files, merged, bank, mixed, graph, syncs,
                                        captured)}
#: Checks that need no numbers.
SHAPES_ONLY = ('placement', )
#: Checks of what only a GPU has.
GPU_ONLY = ('syncs', 'captured')
ROWS = {f'{case.name}-{backbone.name}': (case, backbone) for case, backbone in PAIRS}


def applies(check: str, row: str, device: str = 'cpu') -> bool:
    """Whether a check has something to look at in a row; others are not run, and not counted as passed."""
    case, backbone = ROWS[row]
    if device == 'meta' and (check not in SHAPES_ONLY or backbone.name == 'hf_vjepa2'):
        return False  # the latter's own forward pass reads numbers out of a tensor
    if check in GPU_ONLY and device != 'cuda':
        return False
    kinds = {cfg['type'] for cfg in case.petl}
    side = kinds & {'SynQT', 'LST', 'VQT', 'Side4Video'}
    pooled = kinds & {'VPT', 'E2VPT'} and backbone.name in ('swin', 'timm_eva')
    return bool({
        'merged': case.folds and case.name not in backbone.unmerged,
        'bank': not side,
        # prompts that are averaged cannot stand beside none; frames are a batch of their own
        'mixed': not side and not pooled and 'frames' not in backbone.kwargs,
        'graph': '+' not in case.name and not backbone.like,
    }.get(check, True))
