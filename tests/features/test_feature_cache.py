# SPDX-License-Identifier: Apache-2.0
"""Training on cached features is training without the cache: same numbers, same draws, no work in the base."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_run
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.models import ClsDataPreprocessor
from toy_cache import METHODS, config, quick_runner  # noqa: F401

from mmpetl import compat
from mmpetl.features import store as feature_cache
from mmpetl.features.hook import FeatureCacheHook
from mmpetl.features.store import PLACES, FeatureStore, choose_place


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp('toy')
    return Config.fromfile(toy_run.write(folder))


def train(cfg):
    """The runner after training, and how often the base's first block ran."""
    runner = Runner.from_cfg(cfg)
    calls = []
    runner.model.backbone.layers[0].register_forward_hook(lambda *_: calls.append(1))
    runner.train()
    runner.random_state = torch.get_rng_state()
    return runner, len(calls)


@pytest.mark.parametrize('name', METHODS)
def test_equals_training_without_the_cache_bitwise(toy, tmp_path, name):
    plain, calls = train(config(toy, tmp_path, name))
    cached, fewer = train(config(toy, tmp_path, name, {}))
    for (key, a), b in zip(plain.model.state_dict().items(), cached.model.state_dict().values()):
        assert torch.equal(a, b), key
    assert torch.equal(plain.random_state, cached.random_state)
    # 24 pictures in batches of 8: 3 batches per epoch, 2 epochs, 3 batches of validation at the end; the cache runs the
    # base 3 times.
    assert (calls, fewer) == (9, 6)


@pytest.mark.parametrize('half', [False, True], ids=['float32', 'amp'])
def test_validation_can_be_cached_too(toy, tmp_path, half):
    """In the precision in which it runs: that of training is not its own."""
    often = {'train_cfg.val_interval': 1, **({'optim_wrapper.type': 'mmpetl.CpuAmpOptimWrapper'} if half else {})}
    Scores.seen, runs = [], []
    for cache in (None, dict(modes=('train', 'val'))):
        cfg = config(toy, tmp_path, 'SynQT', cache, **often)
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type=Scores)]
        runs.append(train(cfg))
    (plain, _), (cached, calls) = runs
    assert calls == 6
    histories = [list(r.message_hub.get_scalar('val/accuracy/top1').data[0]) for r in (plain, cached)]
    assert len(histories[0]) == 2 and histories[0] == histories[1]
    assert len(Scores.seen) == 12 and all(map(torch.equal, Scores.seen[:6], Scores.seen[6:]))
    assert all(torch.equal(a, b) for a, b in zip(plain.model.state_dict().values(), cached.model.state_dict().values()))


class Scores(Hook):
    """Keeps the scores of validation."""

    seen: list = []

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(torch.stack([o.pred_score for o in outputs]))


@pytest.mark.parametrize('overrides', [
    {'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': True},
    {'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': False, 'train_cfg.max_epochs': 1},
], ids=['persistent', 'restarted'])
def test_workers_draw_the_same_numbers(toy, tmp_path, overrides):
    plain, _ = train(config(toy, tmp_path, 'VQT', **overrides))
    cached, _ = train(config(toy, tmp_path, 'VQT', {}, **overrides))
    assert torch.equal(plain.random_state, cached.random_state)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.state_dict().values(), cached.model.state_dict().values()))


def test_iteration_based_loop_and_repeated_data(toy, tmp_path):
    found = []
    for cache in (None, {}):
        cfg = config(toy, tmp_path, 'SynQT', cache)
        cfg.train_cfg = dict(by_epoch=False, max_iters=5, val_interval=10)
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
        cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=cfg.train_dataloader.dataset)
        cfg.param_scheduler = None
        cfg.default_hooks.checkpoint.by_epoch = False
        found.append(train(cfg))
    assert all(torch.equal(a, b) for a, b in zip(*(r.model.state_dict().values() for r, _ in found)))
    assert (found[0][1], found[1][1]) == (8, 6)  # 24 pictures, not 72, and the validation at the end


def test_half_precision_is_close(toy, tmp_path):
    plain, _ = train(config(toy, tmp_path, 'LST'))
    for dtype, tolerance in (('float16', 1e-3), ('bfloat16', 1e-2)):
        cached, _ = train(config(toy, tmp_path, 'LST', dict(dtype=dtype)))
        pairs = list(zip(plain.model.state_dict().values(), cached.model.state_dict().values()))
        assert not all(torch.equal(a, b) for a, b in pairs)
        assert all(torch.allclose(a, b, atol=tolerance) for a, b in pairs)


def test_disk_is_used_again_and_only_for_the_same_data_and_trunk(toy, tmp_path):
    cache = dict(place='disk', folder=str(tmp_path / 'features'))
    first, calls = train(config(toy, tmp_path, 'SynQT', cache))
    again, fewer = train(config(toy, tmp_path, 'SynQT', cache))
    assert (calls, fewer) == (6, 4)  # the second run computes one batch, to know the shapes
    assert all(torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values()))
    folders = set((tmp_path / 'features').iterdir())
    assert len(folders) == 1 and not any('.part' in f.name for f in folders)
    other = config(toy, tmp_path, 'SynQT', cache)
    other.randomness = dict(seed=7)  # other base weights
    assert train(other)[1] == 6
    picture = next(Path(toy.train_dataloader.dataset.data_root).rglob('*.png'))
    content = picture.read_bytes()
    try:
        picture.write_bytes(next(p for p in picture.parent.glob('*.png') if p != picture).read_bytes())
        assert train(config(toy, tmp_path, 'SynQT', cache))[1] == 6
    finally:
        picture.write_bytes(content)
    assert len(list((tmp_path / 'features').iterdir())) == 3


def test_a_preprocessor_that_moves_labels_leaves_those_of_the_cache(toy, tmp_path, monkeypatch):
    """mmpretrain's preprocessor writes labels of its own device into the samples; the cache hands out samples of which
    it saw a few only, and labels of two devices make no batch."""
    preprocessor = ClsDataPreprocessor.forward

    def moving(self, data, training=False):
        ready = preprocessor(self, data, training)
        for sample in data['data_samples']:
            sample.gt_label = sample.gt_label.to('meta')
        return ready

    hook = FeatureCacheHook(place='host')
    runner = Runner.from_cfg(config(toy, tmp_path))
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    monkeypatch.setattr(ClsDataPreprocessor, 'forward', moving)
    hook.before_train(runner)
    labels = [runner.train_loop.dataloader.dataset[i]['data_samples'].gt_label for i in range(24)]
    assert {label.device.type for label in labels} == {'cpu'}


def test_everything_is_given_back(toy, tmp_path):
    runner, _ = train(config(toy, tmp_path, 'SynQT', {}))
    assert 'record' not in vars(runner.model.backbone.petl)
    assert type(runner.train_loop.dataloader.dataset).__name__ == 'CustomDataset'


# -- refusals ---------------------------------------------------------------------------------------------------------


def flip(cfg):
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='RandomFlip', prob=.5))


def noise(cfg):
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='Noise'))


class Noise:
    """A transform that hides its randomness."""

    def __call__(self, results):
        results['img'] = results['img'] + np.random.randint(0, 3, results['img'].shape).astype(results['img'].dtype)
        return results


def rare(cfg):
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='Rare'))


class Rare:
    """A transform that hides that it acts on one picture in a thousand."""

    def __call__(self, results):
        if np.random.rand() < .001:
            results['img'] = 255 - results['img']
        return results


def torchvision_flip(cfg):
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='torchvision/RandomHorizontalFlip', p=1.))


def lora(cfg):
    cfg.model.backbone.petl = [dict(type='LoRA', rank=1)]


def tuned(cfg):
    cfg.model.backbone.tune = ['*ln1*']


def noisy_trunk(cfg):
    cfg.model.backbone.trunk = 'train'


def mixup(cfg):
    cfg.model.train_cfg = dict(augments=dict(type='Mixup', alpha=.8))


def compiled(cfg):
    cfg.compile = True


def no_validation(cfg):
    cfg.custom_hooks[0].modes = ['train', 'val']
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None


def foreign(cfg):
    cfg.model.backbone = dict(type='VisionTransformer', arch=cfg.model.backbone.arch, img_size=16, patch_size=8)


@pytest.mark.parametrize('change,message', [
    (flip, 'RandomFlip in the pipeline of CustomDataset is random'),
    (noise, 'not the same when it is read twice'),
    (rare, 'a transform of CustomDataset draws random numbers'),
    (torchvision_flip, 'RandomHorizontalFlip in the pipeline of CustomDataset is random'),
    (lora, 'LoRA changes the token stream'),
    (tuned, 'trains, so the frozen features cannot be cached'),
    (noisy_trunk, "set trunk='eval'"),
    (mixup, 'mixes pictures'),
    (no_validation, "modes names 'val', but the config has no val loop; leave it out"),
    (compiled, 'compile=True'),
    (foreign, 'need a backbone of this package'),
], ids=lambda v: getattr(v, '__name__', None))
def test_refuses_what_is_not_the_same_every_time(toy, tmp_path, change, message, monkeypatch):
    monkeypatch.setattr(Runner, '_maybe_compile', lambda *_: None)
    from mmengine.registry import TRANSFORMS
    for transform in (Noise, Rare):
        if transform.__name__ not in TRANSFORMS:
            TRANSFORMS.register_module(module=transform)
    cfg = config(toy, tmp_path, 'linear', {})
    change(cfg)
    if change is foreign:
        cfg.model.backbone.pop('drop_path_rate', None)
    with pytest.raises(ValueError, match=message):
        train(cfg)


@pytest.mark.parametrize('options,message', [(dict(modes='test'), "unknown modes 'test'"),
                                             (dict(dtype='float8'), 'unknown dtype'),
                                             (dict(place='gpu'), 'unknown place')])
def test_unknown_options(options, message):
    with pytest.raises(ValueError, match=message):
        FeatureCacheHook(**options)


# -- the store --------------------------------------------------------------------------------------------------------


def features(batch):
    return [
        dict(u=torch.randn(batch, 5, 3), mask=torch.arange(2 * batch)),
        (torch.randn(2 * batch, 4, dtype=torch.float64), )
    ]


@pytest.mark.parametrize('place', ['device', 'host', 'disk'])
def test_store_returns_what_was_put(tmp_path, place):
    first, second = features(3), features(3)
    store = FeatureStore(first, 3, 5, torch.device('cpu'), place, folder=tmp_path)
    store.put([0, 1, 2], first)
    store.put([3, 4], second)
    out = store.fetch([4, 1, 1])
    assert torch.equal(out[0]['u'], torch.stack([second[0]['u'][1], first[0]['u'][1], first[0]['u'][1]]))
    assert torch.equal(out[0]['mask'], torch.tensor([2, 3, 2, 3, 2, 3]))
    assert out[1][0].dtype == torch.float64 and torch.equal(out[1][0][:2], second[1][0][2:4])
    assert store.nbytes == 5 * (15 * 4 + 2 * 8 + 2 * 4 * 8)
    # in the same memory: the last call counts
    again, other = store.fetch([4, 1, 1], reuse=True), store.fetch([0, 2, 3], reuse=True)
    assert again[0]['u'].data_ptr() == other[0]['u'].data_ptr() != out[0]['u'].data_ptr()
    assert torch.equal(other[0]['u'], torch.stack([first[0]['u'][0], first[0]['u'][2], second[0]['u'][0]]))
    assert torch.equal(store.fetch([4], reuse=True)[1][0], out[1][0][:2])  # another number of samples
    small = FeatureStore(first, 3, 5, torch.device('cpu'), place, torch.float16, tmp_path / 'half')
    small.put([0, 1, 2], first)
    assert small.fetch([1])[0]['u'].dtype == torch.float32 and small.nbytes == 5 * (15 * 2 + 2 * 8 + 2 * 4 * 2)
    with pytest.raises(ValueError, match='multiple of the batch size 2'):
        FeatureStore(first, 2, 5, torch.device('cpu'))


def test_place_is_the_first_whose_free_half_suffices(monkeypatch, tmp_path):
    free = dict(device=100, host=1000, disk=10000)
    monkeypatch.setattr(feature_cache, 'free_bytes', lambda place, *_: free[place])
    places = [choose_place(dict.fromkeys(PLACES, size), torch.device('cpu'), tmp_path) for size in (50, 51, 500, 501, 5000)]
    assert places == ['device', 'host', 'host', 'disk', 'disk']
    with pytest.raises(ValueError, match='more than half of what is free'):
        choose_place(dict.fromkeys(PLACES, 5001), torch.device('cpu'), tmp_path)


# -- two processes ----------------------------------------------------------------------------------------------------

TWO = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpetl import compat

compat.init_cpu_distributed()
states = []
for path in sys.argv[2:]:
    runner = Runner.from_cfg(Config.fromfile(path))
    runner.train()
    states.append({k: v.clone() for k, v in runner.model.module.state_dict().items()})
assert all(torch.equal(states[0][k], v) for state in states[1:] for k, v in state.items())
print('EQUAL', get_rank(), flush=True)
"""


@pytest.mark.slow
def test_two_processes_share_one_table(toy, tmp_path):
    script = tmp_path / 'two.py'
    script.write_text(TWO)
    paths = []
    shared = dict(folder=str(tmp_path / 'features'))
    for number, cache in enumerate((None, shared, shared)):  # the second time they are found
        cfg = config(toy, tmp_path, 'SynQT', cache)
        cfg.launcher, cfg.model_wrapper_cfg = 'pytorch', compat.CPU_WRAPPER
        paths.append(tmp_path / f'{number}.json')
        paths[-1].write_text(json.dumps(cfg.to_dict()))
    launch = (sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', 2, '--master_port', 29731)
    done = toy_run.command(*launch, script, toy_run.ROOT, *paths, cwd=tmp_path, timeout=300)
    assert done.stdout.count('EQUAL') == 2, done.stdout + done.stderr
    folder, = (tmp_path / 'features').iterdir()
    assert (folder / 'complete.json').exists()
