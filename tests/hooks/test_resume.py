# SPDX-License-Identifier: Apache-2.0
"""A run that was cut and resumed ends with the bits of one that was not, with chance in it; another schedule takes
effect or is refused."""

import re

import pytest
import torch
import toy_chance
from mmengine.hooks import Hook

from mmpetl.hooks.random_state import Draw, drawing_from, random_state, set_random_state
from mmpetl.training.run import build_runner
from mmpetl.weights.io import load_file


class Cut(Hook):
    """Ends a run before an iteration, as a kill would."""

    priority = 'VERY_HIGH'

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise InterruptedError


class Rates(Hook):
    """Notes the rate of every iteration."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append(runner.optim_wrapper.param_groups[0]['lr'])


@pytest.fixture(scope='module')
def chance(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('resume')
    return folder, toy_chance.write(folder)


EMA = [dict(type='mmpetl.AdapterHook'), dict(type='EMAHook', momentum=0.3)]
INSIDE = {'default_hooks.checkpoint': dict(type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1)}
ITERS = {'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=9, val_interval=3),
         'param_scheduler': dict(_delete_=True, type='PolyLR', by_epoch=False, power=2), **INSIDE}
ADALORA = {'model.backbone.petl': [dict(type='AdaLoRA', rank=4, ops='qv', drop_rate=0.2)],
           'custom_hooks': [dict(type='mmpetl.AdapterHook'),
                            dict(type='mmpetl.AdaLoRAHook', target_rank=2, warm_up=2, final=3)], **INSIDE}
#: name -> (changes of the config, iteration before which the run is cut): 9 iterations, 3 in an epoch.
CASES = {
    'end of an epoch': ({}, 7),
    'inside an epoch': (INSIDE, 5),
    'between epochs, saved inside': (INSIDE, 6),
    'workers': ({'train_dataloader.num_workers': 2, 'train_dataloader.persistent_workers': True, **INSIDE}, 5),
    'other number of workers': ({'train_dataloader.num_workers': 1, **INSIDE}, 5),
    'average': ({'custom_hooks': EMA}, 4),
    'average, inside': ({'custom_hooks': EMA, **INSIDE}, 5),
    'accumulation, inside': ({'optim_wrapper.accumulative_counts': 2, **INSIDE, 'default_hooks.checkpoint.interval': 1},
                             5),
    'AdaLoRA, while it chooses': (ADALORA, 5),
    'AdaLoRA, when it has chosen': (ADALORA, 7),
    'mixed precision': ({'optim_wrapper.type': 'mmpetl.CpuAmpOptimWrapper'}, 7),
    'iterations': (ITERS, 5),
    'AdamW, several schedules': ({
        'optim_wrapper.optimizer': dict(_delete_=True, type='AdamW', lr=0.01),
        'param_scheduler': [dict(type='LinearLR', end=1, convert_to_iter_based=True), dict(type='CosineAnnealingLR')]
    }, 4),
    'mixed pictures': ({'model.train_cfg': dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.)])},
                       7),
}


def config(chance, name, work_dir, **more):
    folder, path = chance
    changes = {k: ({a: b for a, b in v.items() if a != '_delete_'} if isinstance(v, dict) else v)
               for k, v in {**CASES[name][0], **more}.items()}
    cfg = toy_chance.config(path, folder / work_dir)
    for key, value in CASES[name][0].items():
        if isinstance(value, dict) and '_delete_' in value:
            owner, _, last = key.rpartition('.')
            (cfg if not owner else cfg.get(owner)).pop(last)
    cfg.merge_from_dict(changes)
    return cfg


def final(work_dir):
    path = next(work_dir.glob('epoch_3.pth'), None) or next(work_dir.glob('iter_9.pth'))
    return load_file(str(path))


@pytest.mark.parametrize('name', CASES)
def test_resume_is_exact(chance, name):
    folder, _ = chance
    stem = re.sub(r'\W+', '_', name)
    build_runner(config(chance, name, f'{stem}_whole')).train()
    runner = build_runner(config(chance, name, f'{stem}_cut'))
    runner.register_hook(Cut(CASES[name][1]))
    with pytest.raises(InterruptedError):
        runner.train()
    torch.manual_seed(99)
    more = {'train_dataloader.num_workers': 0} if name == 'other number of workers' else {}
    cfg = config(chance, name, f'{stem}_cut', resume=True, **more)
    rates = Rates()
    runner = build_runner(cfg)
    runner.register_hook(rates)
    runner.train()
    assert 0 < len(rates.seen) < 9
    one, other = final(folder / f'{stem}_whole'), final(folder / f'{stem}_cut')
    assert one['meta']['iter'] == other['meta']['iter'] == 9
    for part in ('state_dict', 'ema_state_dict'):
        assert one.get(part, {}).keys() == other.get(part, {}).keys()
        assert all(torch.equal(v, other[part][k]) for k, v in one.get(part, {}).items())
    assert torch.equal(one['mmpetl_run']['random'][0]['torch'], other['mmpetl_run']['random'][0]['torch'])
    assert toy_chance.same(folder / f'{stem}_whole/adapter.safetensors', folder / f'{stem}_cut/adapter.safetensors')


def test_chance_is_in_it(chance):
    """Another seed gives other weights, so the tests above can fail."""
    folder, _ = chance
    for seed in (0, 1):
        build_runner(config(chance, 'end of an epoch', f'seed_{seed}', randomness=dict(seed=seed))).train()
    assert not toy_chance.same(folder / 'seed_0/adapter.safetensors', folder / 'seed_1/adapter.safetensors')


def test_what_is_averaged_is_saved(chance):
    """The adapter and the best adapter hold the weights that were validated."""
    folder, path = chance
    from mmpetl.weights import adapter_file
    cfg = config(chance, 'average', 'ema')
    build_runner(cfg).train()
    state = final(folder / 'ema')['state_dict']
    tensors, header = adapter_file.load(folder / 'ema/adapter.safetensors')
    assert all(torch.equal(state[k], v) for k, v in tensors.items())
    for name in ('adapter', 'best_adapter'):
        found = build_runner(config(chance, 'average', 'ema_test', custom_hooks=[dict(type='mmpetl.AdapterHook')],
                                    load_from=str(folder / f'ema/{name}.safetensors'))).test()
        assert found == pytest.approx(adapter_file.load(folder / f'ema/{name}.safetensors')[1]['metrics'], abs=0)


# -- another schedule -------------------------------------------------------------------------------------------------


def rates_of(cfg):
    hook, runner = Rates(), build_runner(cfg)
    runner.register_hook(hook)
    runner.train()
    return hook.seen


@pytest.mark.parametrize('changes', [
    {'train_cfg.max_epochs': 5},
    {'optim_wrapper.optimizer.lr': 0.7},
    {'train_cfg.max_epochs': 4, 'param_scheduler': [dict(type='LinearLR', end=2), dict(type='CosineAnnealingLR', begin=2)]},
])
def test_more_epochs_and_other_rates_take_effect(chance, changes, caplog):
    """After a finished or cut run, the rates are those that the new config would have had at that point."""
    folder, _ = chance
    stem = f'longer_{len(str(changes))}'
    build_runner(config(chance, 'end of an epoch', stem, **{'train_cfg.max_epochs': 2})).train()
    resumed = rates_of(config(chance, 'end of an epoch', stem, resume=True, **changes))
    whole = rates_of(config(chance, 'end of an epoch', f'{stem}_whole', **changes))
    assert len(whole) == 3 * changes.get('train_cfg.max_epochs', 3) and len(set(whole[6:])) > 1 or 'rate' in stem
    assert resumed == whole[6:]


def test_other_optimizer_is_refused(chance):
    folder, _ = chance
    build_runner(config(chance, 'end of an epoch', 'sgd', **{'train_cfg.max_epochs': 1})).train()
    cfg = config(chance, 'end of an epoch', 'sgd', resume=True)
    cfg.optim_wrapper.optimizer = dict(type='AdamW', lr=0.01)
    with pytest.raises(ValueError, match=r'optim_wrapper.optimizer.type is AdamW and was SGD'):
        build_runner(cfg).train()


def test_schedule_follows_the_number_of_epochs_or_is_refused(chance):
    cosine = dict(type='CosineAnnealingLR', T_max=3, end=3)
    cfg = config(chance, 'end of an epoch', 'floor', param_scheduler=[cosine], **{'train_cfg.max_epochs': 6})
    with pytest.raises(ValueError, match=r'param_scheduler.0 \(CosineAnnealingLR\) ends at 3 and train_cfg.max_epochs is 6'):
        build_runner(cfg)
    stays = config(chance, 'end of an epoch', 'stays', param_scheduler=[cosine, dict(type='ConstantLR', factor=1, begin=3)],
                   **{'train_cfg.max_epochs': 6})
    build_runner(stays)
    late = dict(type='CosineAnnealingLR', begin=10, convert_to_iter_based=True)
    short = config(chance, 'end of an epoch', 'short', param_scheduler=[dict(type='LinearLR', end=10), late],
                   **{'train_cfg.max_epochs': 1})
    assert len(rates_of(short)) == 3


@pytest.mark.parametrize('images', [1, 3, 16])
@pytest.mark.parametrize('schedule', ['quickstart', 'small_suite', 'video_demo'])
def test_a_few_images(chance, images, schedule):
    """Schedules whose warm-up is a part of an epoch, with epochs of one or two iterations."""
    from mmengine.config import Config
    theirs = Config.fromfile(f'{toy_chance.toy_run.ROOT}/configs/_base_/schedules/{schedule}.py')
    cfg = config(chance, 'end of an epoch', f'few_{schedule}_{images}', param_scheduler=theirs.param_scheduler)
    cfg.train_dataloader.dataset.indices = list(range(11, 11 - min(images, 12), -1)) if images < 12 else None
    seen = rates_of(cfg)
    assert len(seen) == 3 * len(seen[::3]) and max(seen) == pytest.approx(0.1, rel=0.3)


# -- the parts --------------------------------------------------------------------------------------------------------


def test_random_states_are_whole_and_plain():
    import random

    import numpy as np
    random.gauss(0, 1), np.random.randn()
    state = random_state()

    def drawn():
        return random.random(), random.gauss(0, 1), np.random.randn(3).tolist(), torch.rand(3).tolist()

    first = drawn()
    set_random_state(state)
    assert drawn() == first
    set_random_state(state)
    with drawing_from(5):
        inner = drawn()
    assert drawn() == first
    with drawing_from(5):
        assert drawn() == inner


def test_numbers_with_seeds_travel():
    import copy
    import pickle
    draw = pickle.loads(pickle.dumps(Draw(3, 17)))
    assert draw == 3 and draw.seed == 17 and copy.copy(draw).seed == 17
