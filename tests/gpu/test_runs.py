# SPDX-License-Identifier: Apache-2.0
"""Runs on the device: training, resuming with the same bits, testing, mixed precision, accumulation, EMA, compile, the
feature cache in every place, several processes, the end of the process. All but one wait for ``-m gpu``: on the CPU they
have tests of their own."""

import importlib.util
import os
import subprocess
import sys
import time

import pytest
import torch
import toy_chance
import toy_run
from mmengine.hooks import Hook

from mmpetl.training import run
from mmpetl.training.infer import infer
from mmpetl.training.run import build_runner
from mmpetl.weights.io import load_file

DEVICE = os.environ.get('MMPETL_DEVICE', 'cpu')
GPUS = torch.cuda.device_count()
gpu = pytest.mark.gpu
HALF = 'AmpOptimWrapper' if DEVICE == 'cuda' else 'mmpetl.CpuAmpOptimWrapper'
BF16 = {'optim_wrapper.type': HALF} if DEVICE != 'cuda' else {'optim_wrapper.type': HALF, 'optim_wrapper.dtype': 'bfloat16'}
#: The toy run looks at flipped pictures when it validates too.
PLAIN = """
plain = dict(dataset, pipeline=[pipeline[0], pipeline[-1]])
val_dataloader = dict(val_dataloader, dataset=plain)
test_dataloader = val_dataloader
"""
#: name -> changes of the toy run.
RUNS = {
    'plain': {},
    'bf16': BF16,
    'fp16 with scaler': {'optim_wrapper.type': HALF, 'optim_wrapper.dtype': 'float16'},
    'accumulation': {'optim_wrapper.accumulative_counts': 2},
    'EMA': {'custom_hooks': [dict(type='mmpetl.AdapterHook'), dict(type='EMAHook', momentum=0.3)]},
    'compile': {'compile': True, **BF16},
    'cuda_graph': {'cuda_graph': True, **BF16},
    'workers': {f'{part}_dataloader.{key}': value for part in ('train', 'val', 'test') for key, value in dict(
        num_workers=2, persistent_workers=True, pin_memory=True).items()},
}


class Cut(Hook):
    """Ends a run before its fifth iteration, as a kill would."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 4:
            raise InterruptedError


@pytest.fixture(scope='module')
def chance(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('runs')
    path = toy_chance.write(folder)
    path.write_text(path.read_text() + PLAIN)
    return folder, path


def runner_of(chance, name, **changes):
    folder, path = chance
    return build_runner(toy_chance.config(path, folder / name, **changes))


@pytest.mark.parametrize('name', [pytest.param(name, marks=[] if name == 'accumulation' and DEVICE == 'cpu' else gpu)
                                  for name in RUNS])
def test_a_run_trains_and_its_adapter_tests(chance, name):
    if name == 'fp16 with scaler' and DEVICE != 'cuda':
        pytest.skip('the CPU has no scaler')
    runner = runner_of(chance, name, **RUNS[name])
    assert next(runner.model.parameters()).device.type == DEVICE
    runner.train()
    if name == 'cuda_graph' and DEVICE == 'cuda':
        assert runner.model.backbone.forward._graph is not None, 'the backbone was not captured'
    adapter = os.path.join(runner.work_dir, 'adapter.safetensors')
    metrics = run.test([str(chance[1]), adapter, '--work-dir', str(chance[0] / f'{name} test')])
    wanted = runner.message_hub.get_scalar('val/accuracy/top1').current()
    assert abs(metrics['accuracy/top1'] - wanted) < (10 if 'optim_wrapper.type' in RUNS[name] else 0.1)


@gpu
@pytest.mark.parametrize('place', ['device', 'host', 'disk'])
def test_the_feature_cache(chance, place):
    """Also found again on the disk, where the labels of one batch once lay elsewhere."""
    folder, path = chance
    for number in range(2 if place == 'disk' else 1):
        cfg = toy_chance.config(path, folder / f'cache {place} {number}', **{'model.backbone.petl': []})
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.pipeline = [step for step in loader.dataset.pipeline if 'Random' not in step['type']]
        cfg.custom_hooks = [dict(type='mmpetl.AdapterHook'), dict(
            type='mmpetl.FeatureCacheHook', place=place, folder=str(folder / f'features {place}'))]
        build_runner(cfg).train()


@gpu
def test_a_resumed_run_has_the_same_bits(chance):
    """Cut inside the second epoch, with deterministic kernels."""
    same = dict(randomness=dict(seed=0, deterministic=True))
    whole = runner_of(chance, 'whole', **same).train().state_dict()
    cut = runner_of(chance, 'cut', **same)
    cut.register_hook(Cut())
    with pytest.raises(InterruptedError):
        cut.train()
    resumed = runner_of(chance, 'cut', resume=True, **same).train().state_dict()
    odd = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    assert not odd, odd[:3]


@gpu
def test_inference(chance):
    """Scores of a picture, on the device and on the CPU."""
    folder, path = chance
    runner = runner_of(chance, 'inference', **{'train_cfg.max_epochs': 1})
    runner.train()
    picture = str(next((folder / 'data').rglob('*.png')))
    found = [infer(str(path), os.path.join(runner.work_dir, 'adapter.safetensors'), [picture], device=device)[0]
             for device in (DEVICE, 'cpu')]
    assert abs(found[0]['pred_scores'] - found[1]['pred_scores']).max() < 1e-4


def _launch(chance, name, processes, *options, base=None):
    """Train in several processes; seconds from the last line to the end."""
    folder, path = chance
    if base is not None:
        path = folder / f'{base}.py'
        path.write_text(f"_base_ = ['{chance[1]}', '{toy_run.ROOT}/configs/_base_/strategies/{base}.py']\n")
    environment = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1')
    done = subprocess.Popen(
        ['bash', 'tools/dist_train.sh', str(path), str(processes), '--work-dir', str(folder / name), '--cfg-options',
         'log_level=INFO', 'train_cfg.max_epochs=1', *options], cwd=toy_run.ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    last, lines = time.time(), []
    for line in done.stdout:
        last = time.time()
        lines.append(line)
    assert done.wait(60) == 0, ''.join(lines)[-3000:]
    assert (folder / name / 'adapter.safetensors').exists()
    return time.time() - last


@gpu
def test_every_gpu_over_nccl(chance):
    """One process a GPU (two over gloo on the CPU), with persistent workers; they end within 5 s of the last line, more
    on a busy machine."""
    loader = dict(num_workers=4, persistent_workers=True, pin_memory=True)
    assert _launch(chance, 'nccl', GPUS or 2, *(f'train_dataloader.{k}={v}' for k, v in loader.items())) < 5 * max(
        1, os.getloadavg()[0] / os.cpu_count())


@gpu
@pytest.mark.parametrize('kind', ['fsdp', 'deepspeed'])
def test_strategies(chance, kind):
    if kind == 'deepspeed' and importlib.util.find_spec('deepspeed') is None:
        pytest.skip('deepspeed is not installed')
    _launch(chance, kind, GPUS or 2, base=kind)


@gpu
def test_checkpoints_of_the_device_open_without_one(chance):
    runner = runner_of(chance, 'opened', **{'train_cfg.max_epochs': 1})
    runner.train()
    state = load_file(os.path.join(runner.work_dir, 'epoch_1.pth'))['state_dict']
    assert all(tensor.device.type == 'cpu' for tensor in state.values())
