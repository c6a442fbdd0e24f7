# SPDX-License-Identifier: Apache-2.0
"""Every method on every backbone under DistributedDataParallel: no unused parameter, and two processes equal one."""

import socket

import torch
import torch.multiprocessing as mp
from cases import PAIRS
from ddp_worker import build, gradients, work


def test_two_processes_equal_one():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    context = mp.get_context('spawn')
    results = context.SimpleQueue()
    mp.start_processes(work, args=(port, results), nprocs=2, start_method='spawn')
    failures = [f for _ in range(2) for f in results.get()[1]]
    assert not failures, '\n'.join(failures)


def test_the_check_can_fail():
    case, backbone = PAIRS[0]
    one, other = (gradients(build(case, backbone), backbone.inputs(4, seed=s, dtype=torch.float64)) for s in (0, 1))
    assert max((one[n] - other[n]).abs().max().item() for n in one) > 1e-10
