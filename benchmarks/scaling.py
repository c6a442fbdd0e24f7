# SPDX-License-Identifier: Apache-2.0
"""How step time, memory and traffic grow: closed formulas, checked here, and a simulation: python benchmarks/scaling.py
[--write]

Checks on torch's meta device and in two gloo processes; nothing is timed. ``--write`` writes docs/scaling.md with the
figures of this run.
"""

import argparse
import gc
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from benchmark_costs import MIB, ROOT, build, flops, last
from benchmark_plain import plain
from benchmark_report import markdown
from torch.nn.parallel import DistributedDataParallel

import mmpetl
from mmpetl.costs.memory import on_meta, saved_bytes
from mmpetl.weights import atomic_write

FULL: Dict[str, Any] = dict(tune=['*'])
METHODS: Dict[str, Dict[str, Any]] = {
    'full': FULL,
    'LoRA q, v, rank 8': dict(petl=[dict(type='LoRA', rank=8)]),
    'AdaptFormer 64': dict(petl=[dict(type='AdaptFormer')]),
    'VPT-deep 50': dict(petl=[dict(type='VPT', num_tokens=50)]),
    'SSF': dict(petl=[dict(type='SSF')]),
    'KAdaptation': dict(petl=[dict(type='KAdaptation')]),
    'SynQT P=16': dict(petl=[dict(type='SynQT', num_tokens=16)]),
}


# -- formulas ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """A plain vision transformer and its input: width C, feed-forward width F, depth L, heads H, patch of t x p x p,
    image S, frames T."""
    width: int = 768
    ffn: int = 3072
    depth: int = 12
    heads: int = 12
    patch: int = 16
    tubelet: int = 1
    image: int = 224
    frames: int = 1

    @property
    def patches(self) -> int:
        """Patches of one input."""
        return (self.frames // self.tubelet) * (self.image // self.patch)**2

    @property
    def tokens(self) -> int:
        """N: patches and, for images, the class token."""
        return self.patches + (self.tubelet == 1)

    @property
    def embed(self) -> int:
        """Operations of the patch embedding."""
        return 2 * self.patches * self.width * 3 * self.tubelet * self.patch**2

    @property
    def linear(self) -> int:
        """Operations of one block's linear layers."""
        return 2 * self.tokens * (4 * self.width**2 + 2 * self.width * self.ffn)

    @property
    def attention(self) -> int:
        """Operations of one block's two attention products."""
        return 4 * self.tokens**2 * self.width


def full_operations(s: Size) -> Tuple[int, int]:
    """Forward and backward pass of full fine-tuning, one input."""
    return s.embed + s.depth * (s.linear + s.attention), s.embed + 2 * s.depth * (s.linear + s.attention)


def lora_operations(s: Size, rank: int = 8) -> Tuple[int, int]:
    """The same of LoRA on q and v: no weight gradients of the base, nothing below the first block's q and v."""
    added = 2 * 2 * s.tokens * 2 * s.width * rank
    trunk = s.depth * (s.linear + 2 * s.attention)
    unneeded = 2 * s.tokens * 3 * s.width**2 + s.attention // 2 + 2 * s.tokens * 2 * s.width * rank
    return full_operations(s)[0] + s.depth * added, trunk - unneeded + 2 * s.depth * added


def full_bytes(s: Size) -> int:
    """Bytes kept by full fine-tuning in its plain form (explicit softmax), one input in single precision.

    Per block 8 C + 2 F numbers per token (inputs and outputs of both norms, q, k, v, attention output; GELU's input and
    output), N per token and head of attention weights, four statistics per token; the final norm's input and
    statistics.
    """
    block = s.tokens * (8 * s.width + 2 * s.ffn) + s.heads * s.tokens**2 + 4 * s.tokens
    return 4 * (s.depth * block + s.tokens * (s.width + 2))


def ring_bytes(gradient_bytes: int, gpus: int) -> float:
    """Bytes that each process sends in a ring all-reduce."""
    return 2 * (gpus - 1) / gpus * gradient_bytes


# -- checks -----------------------------------------------------------------------------------------------------------


def image_model(row: Dict[str, Any], s: Size) -> Tuple[Any, torch.Tensor]:
    """Model and one input of a size, on the meta device."""
    from cases import BACKBONE
    if s.tubelet == 1:
        return build(BACKBONE['vit'], row, img_size=s.image), torch.empty(1, 3, s.image, s.image)
    return build(
        BACKBONE['videomae'], row, img_size=s.image,
        num_frames=s.frames), torch.empty(1, 3, s.frames, s.image, s.image)


SIZES = {**{f'ViT-B/16, {image} px': Size(image=image) for image in (112, 224, 384, 512)},
         **{f'VideoMAE-B, {frames} frames': Size(tubelet=2, frames=frames) for frames in (8, 16, 32)}}


def check_operations(sizes: Dict[str, Size]) -> List[List[str]]:
    """Formula against the plain form, exactly, and against ours, which skips what nobody reads.

    Raises:
        AssertionError: If the formula and the plain form differ, or ours computes more.
    """
    rows = []
    for title, s in sizes.items():
        for method, formula in (('full', full_operations), ('LoRA q, v, rank 8', lora_operations)):
            with on_meta():
                model, x = image_model(METHODS[method], s)
                ours, textbook = flops(model, x), flops(plain(model).train(), x)
            wanted = formula(s)
            assert textbook == wanted, f'{title}, {method}: formula {wanted}, counted {textbook}'
            assert sum(ours) <= sum(wanted), f'{title}, {method}: ours {ours}, formula {wanted}'
            rows.append(
                [title, method,
                 str(s.tokens), *(f'{v / 1e9:.2f}' for v in wanted), f'{sum(ours) / sum(wanted):.3f}'])
    return rows


def check_bytes(sizes: Dict[str, Size]) -> List[List[str]]:
    """Formula against the plain form of full fine-tuning, and how little remains of the quadratic term in a fused
    kernel.

    Raises:
        AssertionError: If they differ by more than the input of the patch embedding.
    """
    rows = []
    for title, s in sizes.items():
        with on_meta():
            model, x = image_model(FULL, s)
            ours, textbook = saved_bytes(model, x), saved_bytes(plain(model).train(), x)
        wanted = full_bytes(s)
        assert abs(textbook - wanted) <= 4 * s.tokens * s.width * 2, f'{title}: formula {wanted}, kept {textbook}'
        quadratic = 4 * s.depth * s.heads * s.tokens**2
        mib = [f'{v / MIB:.1f}' for v in (wanted, textbook, ours)]
        rows.append([title, str(s.tokens), *mib[:2], f'{quadratic / wanted:.2f}', mib[2]])
    return rows


def check_linear_growth(images: Sequence[int] = (112, 224, 384, 512)) -> List[List[str]]:
    """What ours keeps is a constant plus a part per token, found at the two smallest sizes: no attention map is kept.

    Raises:
        AssertionError: If the line misses a larger size by more than 1 %.
    """
    rows = []
    for method, row in METHODS.items():
        found = []
        for s in (Size(image=image) for image in images):
            with on_meta():
                model, x = image_model(row, s)
                found.append((s.tokens, saved_bytes(model, x)))
        (n0, b0), (n1, b1) = found[:2]
        slope = (b1 - b0) / (n1 - n0)
        ratios = [kept / (b0 + slope * (n - n0)) for n, kept in found[2:]]
        assert all(abs(r - 1) < 0.01 for r in ratios), f'{method}: {ratios}'
        unit = 4 * Size().width * Size().depth
        rows.append([method, f'{slope / unit:.2f}', f'{(b0 - slope * n0) / MIB:.2f}', *(f'{r:.4f}' for r in ratios)])
    return rows


def _worker(rank: int, port: int, names: Sequence[str], results: Any) -> None:
    """One of two processes: bytes that DDP reduces in a step of every method."""
    from cases import BACKBONE, CASE
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    found = {}
    for name in names:
        torch.manual_seed(0)
        options = FULL if name == 'full' else dict(petl=CASE[name].petl)
        model = DistributedDataParallel(BACKBONE['vit'].build(**options))
        seen: List[int] = []

        def hook(seen: List[int], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            seen.append(bucket.buffer().nbytes)
            return allreduce_hook(dist.group.WORLD, bucket)

        model.register_comm_hook(seen, hook)
        last(model(BACKBONE['vit'].inputs(2))).square().mean().backward()
        found[name] = (sum(seen), sum(4 * p.numel() for p in model.parameters() if p.requires_grad))
    if rank == 0:
        results.put(found)
    del model  # one that outlives its group may wait for the group's threads for ever
    gc.collect()
    dist.destroy_process_group()


def check_traffic(names: Sequence[str]) -> Dict[str, Tuple[int, int]]:
    """Bytes in DDP's buckets and bytes of trainable gradients, tiny ViT, two processes.

    Raises:
        AssertionError: If they differ.
    """
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    results = mp.get_context('spawn').SimpleQueue()
    mp.start_processes(_worker, args=(port, list(names), results), nprocs=2, start_method='spawn')
    found = results.get()
    for name, (reduced, trained) in found.items():
        assert reduced == trained, f'{name}: DDP reduces {reduced} bytes, {trained} bytes of gradients train'
    return found


def check_mixed(adapters: int = 4) -> Tuple[int, int]:
    """Operations of a batch under one adapter and under as many adapters as samples: equal.

    Raises:
        AssertionError: If they differ.
    """
    from cases import BACKBONE
    model = BACKBONE['vit'].build([dict(type='LoRA', rank=2)])
    bank = mmpetl.AdapterBank(model, '0')
    for k in range(1, adapters):
        bank.add(str(k), [dict(type='LoRA', rank=2)])
    x, found = BACKBONE['vit'].inputs(adapters), []
    for ids in (['0'] * adapters, [str(k) for k in range(adapters)]):
        with bank.mixed(ids) as backbone, torch.no_grad():
            found.append(flops(backbone, x)[0])
    assert found[0] == found[1], found
    return found[0], found[1]


# -- simulation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """Assumptions of the simulation."""
    flops: float = 300e12  # sustained operations per second of a GPU, bf16
    per_node: int = 8
    inside: float = 200e9  # bytes per second and GPU between GPUs of a node
    between: float = 12.5e9  # the same between nodes
    latency: float = 15e-6  # seconds of one hop of a ring
    bucket: int = 25 * MIB  # DDP's bucket


def step_seconds(forward: float, backward: float, gradient_bytes: int, gpus: int, c: Cluster) -> float:
    """One data-parallel step: buckets become ready evenly over the backward pass and are reduced one after another
    beside it."""
    compute = (forward + backward) / c.flops
    if gpus == 1:
        return compute
    bandwidth = c.inside if gpus <= c.per_node else c.between
    buckets = max(1, -(-gradient_bytes // c.bucket))
    done = 0.
    for k in range(buckets):
        ready = forward / c.flops + backward / c.flops * (k + 1) / buckets
        done = max(done, ready) + ring_bytes(gradient_bytes // buckets, gpus) / bandwidth + 2 * (gpus - 1) * c.latency
    return max(compute, done)


def simulation(batch: int, gpus: Sequence[int], c: Cluster) -> List[List[str]]:
    """Throughput over that of one GPU, per method: base ViT, ``batch`` images per GPU, gradients in single
    precision."""
    rows = []
    for method, row in METHODS.items():
        with on_meta():
            model, x = image_model(row, Size())
            forward, backward = (batch * v for v in flops(model, x))
            trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
        alone = step_seconds(forward, backward, trained, 1, c)
        speed = [n * alone / step_seconds(forward, backward, trained, n, c) for n in gpus]
        rows.append([method, f'{trained / MIB:.3f}', *(f'{v:.2f}' for v in speed)])
    return rows


def bank_rows(counts: Sequence[int]) -> List[List[str]]:
    """MiB of one base with many adapters against as many full copies."""
    rows = []
    for method in ('LoRA q, v, rank 8', 'AdaptFormer 64', 'VPT-deep 50', 'KAdaptation'):
        with on_meta():
            counted = mmpetl.summary(image_model(METHODS[method], Size())[0])
        base, own = 4 * counted.base, 4 * counted.without_head
        rows.append([
            method, f'{own / MIB:.3f}',
            *(f'{(base + k * own) / MIB:.0f} / {k * (base + own) / MIB:.0f}' for k in counts)
        ])
    return rows


# -- page -------------------------------------------------------------------------------------------------------------

PAGE = """# Scaling

Written by `python benchmarks/scaling.py --write`; the formulas are checked in the same run (an inequality ends it with an error). Base size, one
input, single precision unless said otherwise; operations count two per multiply-add.

## Compute

With N tokens of width C, L blocks, feed-forward width F and patches of t x p x p pixels:

    forward  = E + L (2 N (4 C^2 + 2 C F) + 4 N^2 C)          E = 2 N_p C 3 t p^2
    backward = E + 2 L (2 N (4 C^2 + 2 C F) + 4 N^2 C)        full fine-tuning
    backward = L (2 N (4 C^2 + 2 C F) + 8 N^2 C) - 6 N C^2 - 2 N^2 C + own        a frozen base adapted from block 0 (LoRA on q, v)

N grows with the square of the image side and linearly with the frames. The linear layers grow with N, attention with N^2: it overtakes them
at N = 2 C + F (4608 tokens at base size). A frozen base saves the weight gradients: a third of all linear work. The forms that are
trained here skip what nobody reads, such as the last block of the patch tokens; the last column is their work over the formula.

{operations}

## Memory

Full fine-tuning in its plain form keeps, per input,

    4 bytes x [ L ( N (8 C + 2 F) + H N^2 + 4 N ) + N (C + 2) ]

A fused attention kernel keeps no N^2 term, so memory then grows linearly in N, with the frames and with the square of the image side.

{bytes}

What ours keeps is a line in N: numbers per token and block in units of C, and a constant (prompts, query tokens, small products of
weights). Both were found at 112 and 224 pixels; the last columns are what is kept at larger sizes over what the line predicts.

{growth}

## Adapters served

An `AdapterBank` holds one base and K adapters: base + K x adapter bytes, against K x (base + adapter) for merged copies. A batch in which
every sample has its own adapter costs the same operations as a batch under one adapter (counted: {mixed} both ways for 4 samples of the
test model); it runs as many small products as there are adapters in the batch. MiB in single precision, bank / copies:

{bank}

## Several GPUs

Data-parallel training reduces the gradients of what trains, and nothing else: 4 bytes x trainable parameters per step, in a ring
2 (g - 1) / g of that sent by each of g processes. Checked in two processes on the test model, by the sizes of DDP's own buckets:

{traffic}

Throughput over one GPU in a simulation of DDP (buckets become ready evenly over the backward pass and are reduced one after another beside
it); ViT-B/16, {batch} images per GPU, gradients in single precision. Loaders and the optimizer are not in it. The first column of figures
is MiB of gradients per step. Assumptions:

{cluster}

{simulation}
"""


def page(sizes: Dict[str, Size] = SIZES, batch: int = 64) -> str:
    """Check everything and write it down."""
    c, gpus, counts = Cluster(), (1, 2, 4, 8, 16, 32, 64), (1, 10, 100, 1000)
    traffic = check_traffic(['full', 'LoRA', 'AdaptFormer', 'VPT', 'SSF', 'KAdaptation', 'SynQT'])
    words = (f'* {c.flops / 1e12:.0f} TFLOP/s sustained per GPU, {c.per_node} GPUs per node\n'
             f'* {c.inside / 1e9:.0f} GB/s per GPU inside a node, {c.between / 1e9:g} GB/s between nodes\n'
             f'* {1e6 * c.latency:.0f} microseconds per hop of a ring, buckets of {c.bucket // MIB} MiB')
    return PAGE.format(
        operations=markdown(['size', 'method', 'N', 'GFLOP forward', 'GFLOP backward', 'ours / formula'],
                            check_operations(sizes)),
        bytes=markdown(['size', 'N', 'formula MiB', 'plain form MiB', 'share of N^2', 'ours, fused, MiB'],
                       check_bytes(sizes)),
        growth=markdown(['method', 'x 4 L N C bytes', 'constant MiB', '384 px', '512 px'], check_linear_growth()),
        mixed=f'{check_mixed()[1]:,}',
        bank=markdown(['method', 'one adapter', *(f'K = {k}' for k in counts)], bank_rows(counts)),
        traffic=markdown(['method', 'bytes in buckets', '4 x trainable'],
                         [[k, f'{a:,}', f'{b:,}'] for k, (a, b) in traffic.items()]),
        cluster=words,
        batch=batch,
        simulation=markdown(['method', 'MiB', '1 GPU', *(f'{n} GPUs' for n in gpus[1:])], simulation(batch, gpus, c)))


def main() -> None:
    """Check, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', action='store_true', help='write docs/scaling.md')
    args = parser.parse_args()
    text = page()
    print(text)
    if args.write:
        target = ROOT / 'docs' / 'scaling.md'
        atomic_write(target, lambda file: file.write(text.encode()))
        print(f'Written: {target}')


if __name__ == '__main__':
    main()
