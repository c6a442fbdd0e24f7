# SPDX-License-Identifier: Apache-2.0
"""The pruning loop on generated pictures through MMEngine's Runner: phases together and alone, rewinding, search, kill
and resume."""

import copy
import functools
import inspect
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from rich.console import Console
from safetensors.torch import load_file

from mmpetl.commands.main import main
from mmpetl.hooks.loops import EpochTrainLoop
from mmpetl.pruning.loop import PHASES, E2VPTLoop, scale_schedule
from mmpetl.pruning.state import PruningState, load_state, save_state
from mmpetl.pruning.timeline import timeline
from mmpetl.training import progress_bar
from mmpetl.training.lifecycle import prepare
from mmpetl.training.run import train
from mmpetl.weights import adapter_file

ROOT = Path(__file__).parents[2]
_names = iter(range(10**6))
torch.set_num_threads(1)


@DATASETS.register_module(force=True)
class ToyStripes(BaseDataset):
    """Pictures of three classes: noise with a stripe at one of three heights."""

    def __init__(self, length=12, seed=0):
        self.length, self.seed = length, seed
        super().__init__(metainfo=dict(classes=['a', 'b', 'c']), serialize_data=False)

    def load_data_list(self):
        generator = torch.Generator().manual_seed(self.seed)
        items = []
        for i in range(self.length):
            picture = torch.randn(3, 16, 16, generator=generator)
            picture[:, 5 * (i % 3):5 * (i % 3) + 4] += 6
            items.append(dict(picture=picture, label=i % 3))
        return items

    def prepare_data(self, index):
        item = self.get_data_info(index)
        return dict(inputs=item['picture'], data_samples=DataSample().set_gt_label(item['label']))


def config(work_dir, *, loop=None, petl=None, swin=False, resume=False, validate=True, often=False, **extra):
    petl = petl or dict(type='E2VPT', num_tokens=5, num_kv_tokens=2, segments=4)
    if swin:
        backbone = dict(
            type='mmpetl.SwinTransformer',
            arch=dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2]),
            img_size=16,
            patch_size=2,
            window_size=4,
            out_indices=(1, ),
            petl=[petl])
    else:
        arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
        backbone = dict(type='mmpetl.VisionTransformer', arch=arch, img_size=16, patch_size=8, petl=[petl])
    model = dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling') if swin else None,
                 head=dict(type='LinearClsHead', num_classes=3, in_channels=16))

    def loader(seed, shuffle):
        return dict(
            batch_size=6,
            num_workers=0,
            dataset=dict(type='ToyStripes', seed=seed),
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=shuffle))

    checking = dict(val_dataloader=loader(1, False), val_cfg=dict(), val_evaluator=dict(type='Accuracy', topk=(1, )))
    loop = dict(
        dict(type='mmpetl.E2VPTLoop', max_epochs=3, search_epochs=1, percents=(40, ), min_segments=1), **(loop or {}))
    cfg = dict(
        default_scope='mmpretrain',
        work_dir=str(work_dir),
        model=model,
        train_dataloader=loader(0, True),
        train_cfg=loop,
        resume=resume,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.2, momentum=0.9, weight_decay=1e-3)),
        param_scheduler=[dict(type='CosineAnnealingLR', by_epoch=True, T_max=3)],
        randomness=dict(seed=0),
        log_level='WARNING',
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', **(dict(interval=1, save_best='auto', rule='greater') if often else {}))),
        experiment_name=f'pruning_{next(_names)}_{os.getpid()}',
        **(checking if validate else {}))
    if often:
        cfg['custom_hooks'] = [dict(type='mmpetl.AdapterHook'), dict(type='mmpetl.GradientAuditHook')]
    return Config({**cfg, **extra}, format_python_code=False)


def run(*args, **kwargs):
    runner = Runner.from_cfg(config(*args, **kwargs))
    runner.train()
    return runner


def state_of(folder):
    return json.loads((Path(folder) / 'pruning' / 'state.json').read_text())


def trained(runner):
    return {n: p.detach().clone() for n, p in runner.model.named_parameters() if p.requires_grad}


class Killed(Exception):
    pass


def name_of(runner):
    """Which of the procedure's trainings a runner does: 'train', 'retrain' or '<tokens>-<segments>'."""
    return Path(runner.cfg.filename).stem.split('_')[-1]


def kill_at(monkeypatch, run_name, epoch, how=Killed):
    """Die after the given epoch of one of the loop's trainings, its checkpoint (if any) just written."""
    run_epoch = EpochTrainLoop.run_epoch

    def dying(self):
        run_epoch(self)
        if (name_of(self.runner), self.epoch) == (run_name, epoch):
            raise how

    monkeypatch.setattr(EpochTrainLoop, 'run_epoch', dying)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """One complete run, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp('whole')
    return folder, run(folder, often=True)


def test_one_run_does_everything(whole):
    folder, runner = whole
    state, method = state_of(folder), runner.model.backbone.petl.e2vpt
    assert state['done'] == list(PHASES)
    tokens, segments = state['chosen']
    assert len(state['kept']['tokens']) == 5 - tokens == method.num_prompts(0) == method.num_prompts(1)
    assert all(len(s) == 4 - segments for s in state['kept']['segments'].values())
    assert method.token_mask.nonzero()[:, 0].tolist() == state['kept']['tokens']
    assert [t.num_prompts for t in runner.model.backbone.petl.taps] == [5 - tokens] * 2
    assert state['runs'][0] == dict(
        tokens=0, segments=0, value=state['runs'][0]['value']), 'the unpruned model is a candidate'
    assert set(state['results']) == {'train', 'retrain'} and state['results']['retrain']['accuracy/top1'] > 50
    assert {'init.safetensors', 'trained.safetensors', 'state.json', 'timeline.png'} == {
        p.name for p in (folder / 'pruning').iterdir()}
    assert (runner.epoch, runner.max_epochs) == (3, 3)


@pytest.mark.parametrize('form', ['dict(', 'dict(_delete_=True, '])
def test_the_line_of_the_card_in_a_config_that_inherits_a_shipped_one(tmp_path, form):
    """The quickstart's loop says by_epoch, which a loop with a type must not: the error says what the card says."""
    line = re.search(r"train_cfg = dict\((type='mmpetl.E2VPTLoop'.*?\))", (ROOT / 'docs/methods/e2vpt.md').read_text())[1]
    (tmp_path / 'own.py').write_text(f'_base_ = {str(ROOT / "configs/quickstart/lora.py")!r}\n'
                                     f'train_cfg = {form}{line}\n')
    cfg = Config.fromfile(tmp_path / 'own.py')
    cfg.work_dir = str(tmp_path)
    if '_delete_' not in form:
        with pytest.raises(ValueError, match=r"by_epoch=True, .* write train_cfg = dict\(_delete_=True, type='mmpetl.E2VPTLoop'"):
            prepare(cfg)
    else:
        prepare(cfg)
        assert cfg.train_cfg == dict(type='mmpetl.E2VPTLoop', max_epochs=100, search_epochs=20)


def test_checkpoints_of_the_two_trainings_are_kept_apart(whole):
    folder, runner = whole
    for place in (folder, folder / 'train'):
        assert {p.name for p in place.glob('epoch_*')} == {f'epoch_{i}.pth' for i in (1, 2, 3)}
    assert len(list(folder.glob('best_*.pth'))) == len(list((folder / 'train').glob('best_*.pth'))) == 1
    assert (folder / 'last_checkpoint').read_text() == str(folder / 'epoch_3.pth')


def test_the_pruned_checkpoint_loads_into_the_unpruned_config(whole):
    folder, runner = whole
    other = Runner.from_cfg(config(folder / 'other', load_from=str(folder / 'epoch_3.pth'), default_hooks=dict()))
    # Validation alone initialises nothing, and the checkpoint holds no base.
    trunk = {k: v for k, v in runner.model.backbone.state_dict().items() if not k.startswith('petl.')}
    other.model.backbone.load_state_dict(trunk)
    metrics = other.val()
    assert metrics['accuracy/top1'] == state_of(folder)['results']['retrain']['accuracy/top1']
    assert other.model.backbone.petl.taps[0].num_prompts == runner.model.backbone.petl.taps[0].num_prompts
    x = torch.randn(2, 3, 16, 16)
    runner.model.eval()
    other.model.eval()
    assert torch.equal(runner.model(x), other.model(x))


def test_the_last_training_is_an_ordinary_run(whole, tmp_path):
    """Its config, which lies beside its checkpoints, repeats it."""
    folder, runner = whole
    cfg = Config.fromfile(next(folder.glob('*_retrain.py')))
    assert cfg.train_cfg.type == 'mmpetl.EpochTrainLoop' and cfg.model.backbone.petl[0].kept == state_of(folder)['kept']
    cfg.update(work_dir=str(tmp_path), experiment_name=f'again_{os.getpid()}')
    again = Runner.from_cfg(cfg)
    again.train()
    for name, value in trained(runner).items():
        assert torch.equal(value, trained(again)[name]), name


def test_the_adapter_file_is_the_pruned_model(whole):
    folder, runner = whole
    tensors, header = adapter_file.load(folder / 'adapter.safetensors')
    kept = len(state_of(folder)['kept']['tokens'])
    assert tensors['backbone.petl.e2vpt.prompts.1'].shape == (kept, 16)
    assert torch.equal(tensors['head.fc.weight'], runner.model.head.fc.weight)
    assert header['metrics'] == state_of(folder)['results']['retrain']


@pytest.mark.parametrize('path', sorted((ROOT / 'configs/e2vpt').glob('e2vpt-prune_*.py')), ids=lambda p: p.stem)
def test_the_pruning_recipe(path):
    """The published recipe's config builds a loop of this class, with options that exist."""
    cfg = Config.fromfile(path)
    options = dict(cfg.train_cfg)
    assert options.pop('type') == 'mmpetl.E2VPTLoop' and set(options) <= set(inspect.signature(E2VPTLoop).parameters)
    short = scale_schedule(cfg.param_scheduler, options['search_epochs'] / options['max_epochs'])
    assert [(s['begin'], s['end']) for s in short] == [(0, 2), (2, 20)] and short[1]['T_max'] == 18


def test_every_training_has_the_rate_for_its_batch(tmp_path, monkeypatch):
    """The recipe's rate is meant for 256 images and is scaled to the batch of 6, in every training of the procedure."""
    rates, run_epoch = [], EpochTrainLoop.run_epoch

    def noting(self):
        rates.append(self.runner.optim_wrapper.get_lr()['lr'][0])
        run_epoch(self)

    monkeypatch.setattr(EpochTrainLoop, 'run_epoch', noting)
    loop = dict(max_epochs=1, search_epochs=1, percents=(40, ))
    run(tmp_path, loop=loop, auto_scale_lr=dict(base_batch_size=256, enable=True),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=10., momentum=0.9)), param_scheduler=None)
    assert len(rates) == 2 + len(state_of(tmp_path)['runs']) and set(rates) == {10. * 6 / 256}


def test_timeline(whole):
    folder, _ = whole
    state = load_state(str(folder / 'pruning'))
    labels, shares, values = timeline(state)
    assert len(labels) == len(shares) == len(values) == len(state.runs) + 2
    for run_, column in zip(state.runs, shares[1:]):
        assert column.count(0) == run_['tokens'] and max(column) == 1 - run_['segments'] / 4
    picture = cv2.imread(str(folder / 'pruning' / 'timeline.png'))
    assert picture.shape[0] > 200 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_cascade_stops_early_and_prefers_the_smaller_of_equals(tmp_path, monkeypatch):
    """Levels of 5 tokens: 0 1 2 3 (4 would be 80 %), of 4 segments 0 1 2 (60 %); candidates are decided by a table."""
    values = {(0, 0): 50, (1, 0): 60, (2, 0): 60, (3, 0): 40, (2, 1): 30, (2, 2): 20}
    asked = []

    def candidate(self, pair):
        asked.append(pair)
        self.state.add_run(pair, values[pair])
        return values[pair]

    monkeypatch.setattr(E2VPTLoop, '_candidate', candidate)
    cfg = dict(phases=('train', 'score', 'prune'), max_epochs=1, patience=1, percents=(20, 40, 60))
    run(tmp_path / 'greater', loop=cfg)
    assert asked == [(0, 0), (1, 0), (2, 0), (3, 0), (2, 0), (2, 1)]
    assert state_of(tmp_path / 'greater')['chosen'] == [2, 0]
    asked.clear()
    values.update({(0, 1): 51, (0, 2): 49})
    run(tmp_path / 'less', loop=dict(cfg, rule='less', patience=2))
    assert asked == [(0, 0), (1, 0), (2, 0), (0, 0), (0, 1), (0, 2)]
    assert state_of(tmp_path / 'less')['chosen'] == [0, 2]


def test_a_candidate_without_a_number_never_wins(tmp_path, monkeypatch):
    values = {(0, 0): float('nan'), (1, 0): 10., (2, 0): float('nan'), (3, 0): float('nan')}
    monkeypatch.setattr(E2VPTLoop, '_candidate', lambda self, pair: values.get(pair, 10.))
    run(tmp_path, loop=dict(phases=('train', 'score', 'prune'), max_epochs=1, segments=0, percents=(20, 40, 60)))
    assert state_of(tmp_path)['chosen'] == [1, 0]


def values_before_training(monkeypatch):
    """Trained values at the start of every training of the loop, by its name."""
    seen = {}
    run_epoch = EpochTrainLoop.run_epoch

    def spying(self):
        model = self.runner.model
        seen.setdefault(name_of(self.runner), (copy.deepcopy(model.backbone.petl.e2vpt.state_dict()),
                                               copy.deepcopy(model.head.state_dict())))
        run_epoch(self)

    monkeypatch.setattr(EpochTrainLoop, 'run_epoch', spying)
    return seen


@pytest.mark.parametrize('rewind', ['init', 'reinit', 'keep'])
def test_rewinding(tmp_path, monkeypatch, rewind):
    """Prompts, key/value prompts and head start 'retrain' from the values that the word promises, without the pruned
    rows."""
    seen = values_before_training(monkeypatch)
    run(tmp_path, loop=dict(tokens=2, segments=1, max_epochs=1, rewind=rewind))
    init, done = (load_file(str(tmp_path / 'pruning' / f'{name}.safetensors')) for name in ('init', 'trained'))
    (method, head), kept = seen['retrain'], state_of(tmp_path)['kept']['tokens']
    for i in range(2):
        start, end = (s[f'backbone.petl.e2vpt.prompts.{i}'][kept] for s in (init, done))
        assert not torch.equal(start, end)
        assert torch.equal(method[f'prompts.{i}'], start) == (rewind == 'init')
        assert torch.equal(method[f'prompts.{i}'], end) == (rewind == 'keep')
    start, end = init['head.fc.weight'], done['head.fc.weight']
    assert torch.equal(head['fc.weight'], start) == (rewind == 'init') and torch.equal(head['fc.weight'], end) == (
        rewind == 'keep')
    assert method['prompts.0'].shape == (3, 16) and head['fc.weight'].abs().max() < (1 if rewind == 'keep' else 0.05)


def test_phases_one_by_one_equal_one_run(tmp_path, whole):
    for phases in (['train'], ['score'], ['prune'], ['rewind', 'retrain']):
        runner = run(tmp_path, loop=dict(phases=phases))
    folder, together = whole
    one, other = state_of(tmp_path), state_of(folder)
    assert one == other
    for name, value in trained(together).items():
        assert torch.equal(value, trained(runner)[name]), name


@pytest.mark.parametrize('run_name, epoch', [('train', 2), ('2-0', 1), ('retrain', 2)])
def test_killed_and_resumed(tmp_path, monkeypatch, whole, run_name, epoch):
    """A run that was cut and resumed ends where an uncut one does."""
    with monkeypatch.context() as patch:
        kill_at(patch, run_name, epoch)
        with pytest.raises(Killed):
            run(tmp_path, often=True)
    before = state_of(tmp_path)
    runner = run(tmp_path, resume=True, often=True)
    folder, together = whole
    after, other = state_of(tmp_path), state_of(folder)
    assert after['runs'][:len(before['runs'])] == before['runs']
    # MMEngine does not restore random numbers within a training, and nothing here draws any but the order
    if run_name != 'train':
        assert after == other
    assert after['done'] == list(PHASES)
    if run_name == '2-0':
        for name, value in trained(together).items():
            assert torch.equal(value, trained(runner)[name]), name
    else:
        for name, value in trained(together).items():
            torch.testing.assert_close(trained(runner)[name], value, atol=1e-5, rtol=1e-4)


def test_a_finished_run_resumed_does_nothing(tmp_path, monkeypatch):
    run(tmp_path, loop=dict(tokens=1, segments=0, max_epochs=1))
    monkeypatch.setattr(E2VPTLoop, '_fit', lambda *_: pytest.fail('trained again'))
    run(tmp_path, loop=dict(tokens=1, segments=0, max_epochs=1), resume=True)


def test_released_variant(tmp_path):
    """Masks train in the first phase, are binary afterwards, and pruned tokens stay as zeros."""
    runner = run(tmp_path, petl=dict(type='E2VPT', num_tokens=5, num_kv_tokens=2, segments=4, variant='released'),
                 loop=dict(tokens=2, segments=1, max_epochs=2, rewind='reinit', scorer=dict(variant='released')))
    first = load_file(str(tmp_path / 'pruning' / 'trained.safetensors'))
    assert not torch.equal(first['backbone.petl.e2vpt.segment_mask'], torch.ones(5, 4))
    method = runner.model.backbone.petl.e2vpt
    assert method.num_prompts(0) == 5 and method.token_mask.sum() == 3
    assert set(method.segment_mask.unique().tolist()) == {0., 1.}
    assert (method.on_prompts(0)[0][method.token_mask == 0] == 0).all()


def test_swin(tmp_path):
    runner = run(tmp_path, swin=True, loop=dict(tokens=2, segments=1, max_epochs=1))
    assert [t.num_prompts for t in runner.model.backbone.petl.taps] == [3, 5]


def test_scoring_on_other_data(tmp_path, monkeypatch):
    other = dict(
        batch_size=4,
        num_workers=0,
        dataset=dict(type='ToyStripes', length=10, seed=5),
        collate_fn=dict(type='default_collate'))
    run(tmp_path, loop=dict(tokens=2, segments=1, max_epochs=1, score_dataloader=other))
    assert state_of(tmp_path)['scores']['samples'] == 10


def test_short_schedule():
    full = [
        dict(type='LinearLR', by_epoch=True, begin=0, end=10),
        dict(type='CosineAnnealingLR', T_max=90, begin=10, end=100),
        dict(type='LinearLR', by_epoch=False, begin=0, end=500),
        dict(type='MultiStepLR', milestones=[50, 80], gamma=0.1)
    ]
    short = scale_schedule(full, 0.2)
    assert [(s.get('begin'), s.get('end')) for s in short] == [(0, 2), (2, 20), (0, 500), (None, None)]
    assert short[1]['T_max'] == 18 and short[3]['milestones'] == [10, 16] and short[3]['gamma'] == 0.1
    assert full[0]['end'] == 10 and scale_schedule(None, 0.5) is None


def test_learning_rate_of_candidates_follows_the_short_schedule(tmp_path, monkeypatch):
    rates = {}
    run_iter = EpochTrainLoop.run_iter

    def spying(self, *args):
        rates.setdefault((name_of(self.runner), self.epoch),
                         self.runner.optim_wrapper.get_lr()['lr'][0])
        run_iter(self, *args)

    monkeypatch.setattr(EpochTrainLoop, 'run_iter', spying)
    run(tmp_path, loop=dict(max_epochs=3, search_epochs=2, percents=(20, ), segments=0))
    assert rates['train', 2] == rates['retrain', 2] == pytest.approx(0.2 * 0.25)
    assert rates['1-0', 0] == 0.2 and rates['1-0', 1] == pytest.approx(0.1)


@pytest.mark.parametrize('loop, message',
                         [(dict(phases=('train', 'prune', 'score')),
                           'phases must be some of train, score, prune, rewind, retrain, in this order'),
                          (dict(phases=('train', 'rescore')), "unknown phases 'rescore'; did you mean 'score'"),
                          (dict(tokens=5), "tokens must be 'search' or a number to prune in 0..4, got 5"),
                          (dict(segments=-1), "segments must be 'search' or a number to prune in 0..3, got -1"),
                          (dict(tokens='serch'), "tokens must be 'search'"),
                          (dict(rewind='initial'), "unknown rewind 'initial'"),
                          (dict(search_epochs=0), 'E2VPTLoop: search_epochs'),
                          (dict(patience=0), 'E2VPTLoop: patience'), (dict(min_tokens=9), 'a minimum of 9 of 5 units'),
                          (dict(scorer=dict(target='keys')), "unknown target 'keys'"),
                          (dict(phases=('score', )), 'phase score needs a trained model'),
                          (dict(phases=('prune', )), 'there are no scores yet'),
                          (dict(phases=('rewind', )), "nothing was chosen yet: run phase 'prune'")])
def test_bad_options(tmp_path, loop, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, loop=loop)
    assert not list(tmp_path.rglob('*.pth')), 'refused before anything was trained'


def test_bad_surroundings(tmp_path):
    with pytest.raises(ValueError, match='the search needs validation data'):
        run(tmp_path, validate=False)
    run(tmp_path / 'fixed', validate=False, loop=dict(tokens=1, segments=1, max_epochs=1))
    with pytest.raises(ValueError, match="exactly one dict\\(type='E2VPT'\\).* which holds VPT"):
        run(tmp_path, petl=dict(type='VPT'))
    with pytest.raises(ValueError, match='EMAHook keeps a copy of the unpruned model'):
        run(tmp_path, custom_hooks=[dict(type='EMAHook')])
    with pytest.raises(ValueError, match='no metric .accuracy/top5'):
        run(tmp_path, loop=dict(metric='accuracy/top5', max_epochs=1))
    with pytest.raises(ValueError, match=r'is of a run with \(tokens, segments\) = \(5, 4\), the config has \(3, 4\)'):
        run(tmp_path / 'fixed', petl=dict(type='E2VPT', num_tokens=3, segments=4), loop=dict(phases=('prune', )))
    with pytest.raises(ValueError, match='the model is pruned already'):
        run(tmp_path / 'again', load_from=str(tmp_path / 'fixed' / 'epoch_1.pth'))


def test_a_broken_state_file(tmp_path):
    folder = str(tmp_path / 'pruning')
    save_state(folder, PruningState(5, 4))
    assert load_state(folder) == PruningState(5, 4)
    for text in ('{"format": 1}', '{"num_to', '[]'):
        (tmp_path / 'pruning' / 'state.json').write_text(text)
        with pytest.raises(ValueError, match='state.json is not the state of a pruning run'):
            run(tmp_path, resume=True)


SCRIPT = """
import os, sys
import torch
from mmengine.runner import Runner
sys.path.insert(0, sys.argv[1])
from test_loop import config
from mmpetl import compat
compat.init_cpu_distributed()
wrapper = dict(compat.CPU_WRAPPER)
runner = Runner.from_cfg(config(sys.argv[2], launcher='pytorch', model_wrapper_cfg=wrapper, experiment_name='two',
                                loop=dict(segments=1, max_epochs=2)))
runner.train()
method = runner.model.module.backbone.petl.e2vpt
print('RANK', os.environ['RANK'], method.num_prompts(0), sum(p.double().sum().item() for p in runner.model.parameters() if p.requires_grad))
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Data-parallel wrappers are renewed at every change of shapes; both processes choose and end the same."""
    base = dict(
        os.environ,
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(20000 + os.getpid() % 20000),
        WORLD_SIZE='2',
        LOCAL_WORLD_SIZE='2',
        OMP_NUM_THREADS='1',
        PYTHONPATH=str(ROOT))
    running = [
        subprocess.Popen(
            [sys.executable, '-c', SCRIPT, str(Path(__file__).parent),
             str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=dict(base, RANK=str(r), LOCAL_RANK=str(r))) for r in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], answers[0][1][-2000:]
    ends = [next(line.split()[2:] for line in out.splitlines() if line.startswith('RANK')) for out, _ in answers]
    assert ends[0] == ends[1]
    state = state_of(tmp_path)
    assert state['done'] == list(PHASES) and state['scores']['samples'] == 12
    assert int(ends[0][0]) == len(state['kept']['tokens'])


@pytest.mark.parametrize('run_name, epoch', [('train', 2), ('2-0', 1), ('retrain', 1)])
def test_cut_in_the_middle_of_each_phase_of_the_tool(tmp_path, monkeypatch, run_name, epoch):
    """``tools/train.py CONFIG --auto-scale-lr``, killed and run again with ``--resume``."""
    cfg, folder = tmp_path / 'toy.py', tmp_path / 'run'
    options = dict(auto_scale_lr=dict(base_batch_size=6), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)))
    config(folder, loop=dict(max_epochs=2, segments=1), often=True, **options).dump(str(cfg))
    argv = [str(cfg), '--work-dir', str(folder), '--auto-scale-lr']
    with monkeypatch.context() as patch:
        kill_at(patch, run_name, epoch)
        with pytest.raises(Killed):
            train(argv)
    with pytest.raises(ValueError, match='holds a run'):
        train(argv)
    seen = []
    run_epoch = EpochTrainLoop.run_epoch
    monkeypatch.setattr(EpochTrainLoop, 'run_epoch', lambda self: (
        seen.append((name_of(self.runner), self.epoch, self.runner.optim_wrapper.get_lr()['lr'][0])), run_epoch(self)))
    train([*argv, '--resume'])
    assert state_of(folder)['done'] == list(PHASES) and (folder / 'adapter.safetensors').is_file()
    after = dict(train=['0-0', '2-0', 'retrain'], retrain=['retrain']).get(run_name, ['2-0', 'retrain'])
    assert list(dict.fromkeys(name for name, _, _ in seen)) == after
    assert all(rate in (0.1, pytest.approx(0.075)) for _, _, rate in seen)
    if run_name == 'retrain':
        assert [(name, at) for name, at, _ in seen] == [('retrain', 1)]


def test_the_command_shows_what_it_shows_of_an_ordinary_run(tmp_path, monkeypatch, capfd):
    """Data, what trains, log, epochs in all; at Ctrl-C what is kept; the bar in every training; the end."""
    config(tmp_path / 'run', often=True, log_level='INFO').dump(str(tmp_path / 'toy.py'))
    monkeypatch.chdir(tmp_path)
    words = ['train', 'toy.py', '--work-dir', 'run']
    for name, epoch, kept in (('train', 2, 'train of E2VPT; run/train/epoch_2.pth, epoch 2, iteration 4, is kept'),
                              ('2-0', 1, 'prune of E2VPT; 1 candidate(s) are kept')):
        with monkeypatch.context() as patch:
            kill_at(patch, name, epoch, KeyboardInterrupt)
            assert main(words) == 130
        out, err = capfd.readouterr()
        assert err.splitlines()[-1] == f'interrupted: in phase {kept}; the same command with --resume goes on'
        lines = [line for line in out.splitlines() if not line.startswith(('Resume', 'log', 'E2VPT: done'))]
        assert [line.split()[0] for line in lines[:2]] == ['data', 'trains'] and lines[0].endswith('3 classes: a, b, c')
        assert lines[2] == 'epochs    train 3, prune at most 3 x 1, retrain 3; at most 9 in all'
        words = [*words[:4], '--resume']
    assert 'E2VPT: without 2 tokens and 0 segments, epoch 5 of at most 9' in out and 'train   epoch 1/1' in out
    screen = io.StringIO()
    monkeypatch.setattr(progress_bar, 'Console', lambda file: Console(file=screen, force_terminal=True, width=120))
    bar = progress_bar.Progress
    monkeypatch.setattr(bar, 'update', functools.partialmethod(bar.update, refresh=True))
    assert main(words) == 0
    shown = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', screen.getvalue())
    assert re.search(r'epoch 1/1 .* 2/2 ', shown) and re.search(r'epoch 3/3 .* 6/6 ', shown) and 'Epoch(train)' not in shown
    assert 'E2VPT: phase retrain, epochs 7 to 9 of at most 9' in shown + capfd.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert 'finished  all phases (train, score, prune, rewind, retrain); to train longer' in capfd.readouterr().out
