# SPDX-License-Identifier: Apache-2.0
"""What each of two processes does in tests/methods/test_choices.py: choices from half of the batches, AdaLoRA on half of
every batch. A module of its own, because a started process imports it by name."""

import gc
import os

import torch
from test_choices import LABELS, batch, classifier, pictures
from torch.nn.parallel import DistributedDataParallel

from mmpetl.hooks.choice import choose

PETL = [dict(type='GPS', num_weights=3), dict(type='SCT', num_channels=5), dict(type='SPT', budget=900, rank=2)]
BATCHES = [[batch(1), batch(2)], [batch(3), batch(4)], [batch(5), batch(6)], [batch(7), batch(8)]]
STEPS = 8


def chosen(batches, noise=0):
    """State of methods that have chosen from batches, after so many random numbers more than elsewhere."""
    model = classifier(PETL)
    if torch.distributed.is_initialized():
        DistributedDataParallel(model)
    methods = model.backbone.petl

    def read():
        for views in batches:
            torch.rand(noise)  # every process draws its own augmentation
            yield views

    for names in (('gps', 'sct'), ('spt', )):
        torch.manual_seed(3)  # as the hook does
        choose(model, [methods[name] for name in names], read(), 3)
    return {name: value.clone() for name, value in methods.state_dict().items()}


def allotted(rank, processes):
    """AdaLoRA's state after a few steps on a process's share of every batch, and what was kept at each."""
    model = classifier([dict(type='AdaLoRA', rank=3, alpha=6)]).requires_grad_(False)
    method = model.backbone.petl['adalora'].requires_grad_(True)
    shared = DistributedDataParallel(model) if processes > 1 else model
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.01)
    allocator, kept = method.allocator(1, STEPS, 1, 2, 1), []
    for step in range(1, STEPS + 1):
        mine = slice(rank * len(LABELS) // processes, (rank + 1) * len(LABELS) // processes)
        scores = shared(pictures(step)[mine], mode='tensor')
        loss = torch.nn.functional.cross_entropy(scores, LABELS[mine]) + method.orthogonality('released')
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        allocator.step(step)
        kept.append({name: mask.clone() for name, mask in allocator.kept.items()})
    return {name: value.clone() for name, value in method.state_dict().items()}, kept


def work(rank, port, folder):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    found = chosen(BATCHES[rank::2], noise=5 * rank), *allotted(rank, 2)
    torch.save(found, folder / f'{rank}.pth')
    gc.collect()  # see tests/ddp_worker.py
    torch.distributed.destroy_process_group()

