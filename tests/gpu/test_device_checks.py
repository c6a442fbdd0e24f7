# SPDX-License-Identifier: Apache-2.0
"""The checks for GPUs: `MMPETL_DEVICE=cuda pytest tests/gpu -m gpu` runs all rows there; a few rows run on the CPU, and
where tensors lie is asked on the meta device, in the default suite."""

import os
import sys

import device_checks
import pytest
import torch
from device_checks import CHECKS, FEW, ROWS, SHAPES_ONLY

DEVICE = os.environ.get('MMPETL_DEVICE', 'cpu')


def rows(device):
    """On the CPU the few rows belong to the default suite, all others wait for ``-m gpu``."""
    return [pytest.param(*pair, id=name, marks=[] if device != 'cuda' and name in FEW else pytest.mark.gpu)
            for name, pair in ROWS.items()]


@pytest.fixture(autouse=True, scope='module')
def exact():
    """Products of 32 bits, where TF32 would be the card's default."""
    torch.set_num_threads(1)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize('check', [name for name in CHECKS if name != 'graph'])
@pytest.mark.parametrize('case,backbone', rows(DEVICE))
def test_on_the_device(check, case, backbone):
    if DEVICE == 'cuda' and not torch.cuda.is_available():
        pytest.fail('MMPETL_DEVICE=cuda, and torch sees no GPU')
    CHECKS[check](case, backbone, DEVICE)


@pytest.mark.gpu
@pytest.mark.parametrize('case,backbone', rows(DEVICE))
def test_graphs_on_the_device(case, backbone):
    CHECKS['graph'](case, backbone, DEVICE)


@pytest.mark.parametrize('check', SHAPES_ONLY)
@pytest.mark.parametrize('case,backbone', [pytest.param(*pair, id=name) for name, pair in ROWS.items() if name in FEW])
def test_on_meta(check, case, backbone):
    CHECKS[check](case, backbone, 'meta')


def test_the_checks_can_fail(monkeypatch):
    """A parameter that was left on the CPU, and an output that differs."""
    case, backbone = ROWS['LoRA-vit']
    monkeypatch.setattr(sys.modules['mmpetl.backbones.attach'], '_move_to', lambda backbone: None)
    with pytest.raises((AssertionError, RuntimeError)):
        CHECKS['placement'](case, backbone, 'meta')
    monkeypatch.setattr(device_checks, 'gradients', lambda model, seen=[]: seen.append(1) or torch.tensor([len(seen), 1.]))
    with pytest.raises(AssertionError, match='gradients: relative error'):
        CHECKS['equal'](case, backbone, 'cpu')
