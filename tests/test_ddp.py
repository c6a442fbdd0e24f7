# SPDX-License-Identifier: Apache-2.0
"""Every method on every backbone under DistributedDataParallel: no unused parameter, and two processes equal one."""

import socket

import pytest
import torch
import torch.multiprocessing as mp
from cases import ONE_PER_POINT, PAIRS
from ddp_worker import build, gradients, work

# by default every method on two backbones, and one method per point on the others
OFTEN = [i for i, (case, backbone) in enumerate(PAIRS) if backbone.name in ('vit', 'video_swin') or
         case.name in ONE_PER_POINT and not backbone.like or case.name == 'LoRA' or len(case.on) == 1]


@pytest.mark.parametrize('rows', [
    pytest.param(OFTEN, id='often'),
    pytest.param([i for i in range(len(PAIRS)) if i not in OFTEN], id='others', marks=pytest.mark.slow)])
def test_two_processes_equal_one(rows):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    results = mp.get_context('fork').SimpleQueue()  # what is imported already is not imported again
    mp.start_processes(work, args=(port, results, rows), nprocs=2, start_method='fork')
    failures = [f for _ in range(2) for f in results.get()[1]]
    assert not failures, '\n'.join(failures)


def test_the_check_can_fail():
    case, backbone = PAIRS[0]
    one, other = (gradients(build(case, backbone), backbone.inputs(4, seed=s, dtype=torch.float64)) for s in (0, 1))
    assert max((one[n] - other[n]).abs().max().item() for n in one) > 1e-10
