# SPDX-License-Identifier: Apache-2.0
"""A training forward pass under bf16 autocast on fake CUDA tensors, which need no card: torch refuses tensors of two
devices in one operation, tensors that are made elsewhere, and numbers that are read out of a tensor, for which a card
would wait. Gradients of fake CUDA tensors need a card: tests/gpu/test_device_checks.py has those, there and on meta."""

import functools
import sys
import traceback
import warnings

import pytest
import torch
from cases import features
from device_checks import FEW, ROWS
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def to_fake_cuda(model):
    """Replace parameters and buffers; inside of FakeTensorMode."""
    fakes = {}
    for module in model.modules():
        # What is neither stays on the CPU, as with model.cuda().
        for name, tensor in vars(module).items():
            if type(tensor) is torch.Tensor:
                vars(module)[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in fakes:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device='cuda')
                    trains = tensor.requires_grad
                    fakes[id(tensor)] = torch.nn.Parameter(fake, trains) if isinstance(tensor, torch.nn.Parameter) else fake
                own[name] = None if tensor is None else fakes[id(tensor)]


def clear_caches():
    """Upstream keeps masks and grids by size and device, which would be fake ones."""
    for name, module in list(sys.modules.items()):
        if name.startswith(('mmaction.models', 'transformers.models', 'timm')):
            for kept in list(vars(module).values()):
                cells = getattr(kept, '__closure__', None) or ()
                for inner in (kept, *(cell.cell_contents for cell in cells)):
                    if isinstance(inner, functools._lru_cache_wrapper):
                        inner.cache_clear()


@pytest.fixture
def autocast_allowed(monkeypatch):
    """Torch turns autocast of CUDA off where there is no card."""
    clear_caches()
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *_, **__: True)
    yield
    clear_caches()


class FromHost(TorchDispatchMode):
    """Lines of methods in which a tensor of the CPU meets one of the card: copies in every pass, for which the card waits.
    """

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        if len(devices) > 1:
            ours = [frame for frame in traceback.extract_stack() if '/mmpetl/methods/' in frame.filename]
            self.found |= {f'{frame.filename}:{frame.lineno} {func}' for frame in ours[-1:]}
        return out


def forward(row):
    case, backbone = ROWS[row]
    model = backbone.build(case.petl)
    return model, passes(model, backbone)


def passes(model, backbone):
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        to_fake_cuda(model)
        model.train()
        with torch.autocast('cuda', torch.bfloat16), FromHost() as copies:
            found = features(model(torch.empty(2, *backbone.shape, device='cuda')))
    assert not copies.found, copies.found
    return found


@pytest.mark.parametrize('row', [pytest.param(row, marks=[] if row == FEW[0] else pytest.mark.slow) for row in ROWS])
def test_nothing_lies_elsewhere_and_nothing_is_read(autocast_allowed, row):
    found = forward(row)[1]
    assert found.device.type == 'cuda' and found.requires_grad


@pytest.mark.parametrize('fault, error', [
    (lambda y: y + torch.zeros(2, device='cpu').new_ones(2, 1), RuntimeError),
    (lambda y: y * y.sum().item(), DataDependentOutputException)], ids=['another device', 'a number'])
def test_faults_are_seen(autocast_allowed, fault, error):
    case, backbone = ROWS[FEW[0]]
    model = backbone.build(case.petl)
    plain = model.forward
    model.forward = lambda x: fault(plain(x)[-1])
    with pytest.raises(error):
        passes(model, backbone)
