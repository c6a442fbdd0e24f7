# SPDX-License-Identifier: Apache-2.0
"""The checks for GPUs: `MMPETL_DEVICE=cuda pytest tests/gpu -m gpu` runs all rows there; a few rows run on the CPU, and
where tensors lie is asked on the meta device, in the default suite."""

import os
import sys

import device_checks
import pytest
import torch
from device_checks import CHECKS, FEW, GPU_ONLY, ROWS, SHAPES_ONLY, applies

DEVICE = os.environ.get('MMPETL_DEVICE', 'cpu')


def rows(device):
    """On the CPU all but graphs of the few rows belong to the default suite, all others wait for ``-m gpu``."""
    return [pytest.param(check, row, id=f'{check}-{row}',
                         marks=[] if device != 'cuda' and row in FEW and check != 'graph' else pytest.mark.gpu)
            for row in ROWS for check in CHECKS if applies(check, row, device)]


@pytest.fixture(autouse=True, scope='module')
def exact():
    """Products of 32 bits, where TF32 would be the card's default."""
    torch.set_num_threads(1)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize('check, row', rows(DEVICE))
def test_on_the_device(check, row):
    if DEVICE == 'cuda' and not torch.cuda.is_available():
        pytest.fail('MMPETL_DEVICE=cuda, and torch sees no GPU')
    CHECKS[check](*ROWS[row], DEVICE)


@pytest.mark.parametrize('check', SHAPES_ONLY)
@pytest.mark.parametrize('row', FEW)
def test_on_meta(check, row):
    CHECKS[check](*ROWS[row], 'meta')


def test_every_check_runs_on_most_rows():
    """What is left out is left out by a rule, and every method is mixed or replaces the output."""
    count = {check: sum(applies(check, row, 'cuda') for row in ROWS) for check in CHECKS}
    assert not any(applies(check, row) for check in GPU_ONLY for row in FEW)
    assert {check for check in CHECKS if count[check] < len(ROWS)} == {'merged', 'bank', 'mixed', 'graph'}
    assert min(count.values()) > len(ROWS) / 3 and count['mixed'] > 0.8 * len(ROWS)
    assert not any(applies(check, 'LoRA-vit', 'meta') for check in CHECKS if check not in SHAPES_ONLY)


def test_the_checks_can_fail(monkeypatch):
    """A parameter that was left on the CPU, and an output that differs."""
    case, backbone = ROWS['LoRA-vit']
    monkeypatch.setattr(sys.modules['mmpetl.backbones.attach'], '_move_to', lambda backbone: None)
    with pytest.raises((AssertionError, RuntimeError)):
        CHECKS['placement'](case, backbone, 'meta')
    monkeypatch.setattr(device_checks, 'gradients', lambda model, seen=[]: seen.append(1) or torch.tensor([len(seen), 1.]))
    with pytest.raises(AssertionError, match='gradients: relative error'):
        CHECKS['equal'](case, backbone, 'cpu')
