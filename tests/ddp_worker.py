# SPDX-License-Identifier: Apache-2.0
"""What each of two processes does in tests/test_ddp.py. A module of its own, because a started process imports it by
name."""

import gc
import os

import torch
from cases import PAIRS, features, perturb
from torch.nn.parallel import DistributedDataParallel


def gradients(model, x):
    weights = torch.linspace(-1, 1, features(model(x))[0].numel(), dtype=x.dtype)
    model.zero_grad()
    (features(model(x)).flatten(1) * weights).square().mean().backward()
    inner = getattr(model, 'module', model)
    return {n: p.grad.clone() for n, p in inner.named_parameters() if p.requires_grad}


def build(case, backbone):
    torch.manual_seed(0)
    model = backbone.build(case.petl).double()
    perturb(model, 0.05)
    model.eval()  # without dropout, which draws differently in two processes
    return model


def compare(case, backbone, rank):
    """The largest difference between gradients that two processes share and those of one; None in the second one."""
    model = DistributedDataParallel(build(case, backbone), broadcast_buffers=False)
    x = backbone.inputs(4, dtype=torch.float64)
    for _ in range(2):  # a parameter that the first step did not use fails in the second
        shared = gradients(model, x[2 * rank:2 * rank + 2])
    if rank == 0:
        alone = gradients(build(case, backbone), x)
        return max((shared[n] - alone[n]).abs().max().item() for n in alone)


def work(rank, port, results, rows):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    failures = []
    for case, backbone in (PAIRS[row] for row in rows):
        try:
            worst = compare(case, backbone, rank)
            if worst is not None and worst > 1e-10:
                failures.append(f'{case.name} on {backbone.name}: gradients differ by {worst:.1e}')
        except RuntimeError as error:
            failures.append(f'{case.name} on {backbone.name}: {str(error).splitlines()[0]}')
    results.put((rank, failures))
    # The last model that outlives its group ends the group's threads, with Python's lock held that they may wait for.
    gc.collect()
    torch.distributed.destroy_process_group()
