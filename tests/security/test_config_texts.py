# SPDX-License-Identifier: Apache-2.0
"""The text of a config inside a checkpoint is a stranger's program: loading and resuming never execute it."""

import os

import pytest
import torch
import toy_run
from hostile import command
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.runner import checkpoint as upstream

from mmpetl.compat import loading
from mmpetl.training.run import build_runner, train, train_config, train_parser

STRATEGY = "runner_type = 'FlexibleRunner'\nstrategy = dict(type='SingleDeviceStrategy')\n"


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    """Config, and a checkpoint that one epoch left."""
    folder = tmp_path_factory.mktemp('toy')
    config = toy_run.write(folder)
    options = ['--work-dir', str(folder / 'first'), '--cfg-options', 'train_cfg.max_epochs=1']
    train([str(config), *options])
    return config, folder / 'first/epoch_1.pth'


def text(marker):
    return f'done = __import__("os").system({command(marker)!r})\n'


def write_evil(source, target, marker):
    """The checkpoint with program texts in all three places; it loads with weights_only."""
    checkpoint = torch.load(source, weights_only=False)
    checkpoint['meta'].update(config=text(marker), cfg=text(marker))
    checkpoint['message_hub']['runtime_info']['cfg'] = text(marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, target)
    return target


@pytest.mark.parametrize('flexible', [False, True], ids=['Runner', 'FlexibleRunner'])
@pytest.mark.parametrize('way', ['--resume FILE', '--resume', 'load_from'])
def test_resuming_runs_nothing(tmp_path, toy, way, flexible):
    config, source = toy
    marker, work_dir = tmp_path / 'it-ran', tmp_path / 'run'
    evil = write_evil(source, (tmp_path if way == 'load_from' else work_dir) / 'epoch_1.pth', marker)
    own = tmp_path / 'toy.py'
    own.write_text(config.read_text() + (STRATEGY if flexible else ''))
    argv = [str(own), '--work-dir', str(work_dir)]
    if way == 'load_from':
        argv += ['--cfg-options', f'load_from={evil}']
    elif way == '--resume':
        (work_dir / 'last_checkpoint').write_text(str(evil))
        argv += ['--resume']
    else:
        argv += ['--resume', str(evil)]
    train(argv)
    assert not marker.exists()
    assert (work_dir / 'epoch_2.pth').exists(), 'the run must have gone on to its end'
    left = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    assert '__import__' not in left['meta'].get('cfg', '') + left['message_hub']['runtime_info'].get('cfg', '')


def test_control_upstream_executes_it(tmp_path, toy, monkeypatch):
    """With a loader that only refuses pickled code, resuming runs the text. Fails once MMEngine no longer does."""
    config, source = toy
    marker, work_dir = tmp_path / 'it-ran', tmp_path / 'run'
    evil = write_evil(source, work_dir / 'epoch_1.pth', marker)
    monkeypatch.setattr(loading, 'cut_config_texts', lambda checkpoint: checkpoint)
    args = train_parser().parse_args([str(config), '--work-dir', str(work_dir), '--resume', str(evil)])
    build_runner(train_config(args)).train()
    assert marker.exists()


def test_inferencers_find_no_text_to_execute(tmp_path, toy):
    marker = tmp_path / 'it-ran'
    evil = write_evil(toy[1], tmp_path / 'evil.pth', marker)
    inferencer = BaseInferencer.__new__(type('Any', (BaseInferencer, ), {
        name: lambda self: None for name in BaseInferencer.__abstractmethods__}))
    with pytest.raises(ValueError, match='Cannot find the config'):
        inferencer._init_model(Config(), str(evil))
    assert not marker.exists()


@pytest.mark.parametrize('place', ['a.pth', 's3://bucket/a.pth', 'petrel://a.pth', 'cluster:s3://a.pth', 'pavi://a.pth',
                                   'http://x/a.pth', 'torchvision://x'])
def test_every_scheme_cuts_the_texts(tmp_path, monkeypatch, place):
    """No loader of MMEngine's table gives out a checkpoint with its texts."""
    full = dict(state_dict=dict(w=torch.ones(1)), meta=dict(cfg='import os', config='import os', epoch=1),
                message_hub=dict(runtime_info=dict(cfg='import os', iter=3)))
    torch.save(full, tmp_path / 'a.pth')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    os.makedirs(tmp_path / 'hub/checkpoints')
    torch.save(full, tmp_path / 'hub/checkpoints/a.pth')
    monkeypatch.setattr(upstream, 'get_torchvision_models', lambda: dict(x='http://x/a.pth'))
    loader = upstream.CheckpointLoader._get_checkpoint_loader(place)
    if getattr(loader, '__wrapped__', None) is not None:  # a service that no test has: what it returns is cut
        assert loader.__wrapped__ in (upstream.load_from_ceph, upstream.load_from_pavi)
        loader = loading._without_config_texts(lambda filename, map_location=None: full)
    loaded = loader(place, 'cpu')
    assert loaded['meta'] == dict(epoch=1) and loaded['message_hub'] == dict(runtime_info=dict(iter=3))


def test_no_scheme_was_forgotten():
    assert set(upstream.CheckpointLoader._schemes) == {
        '', 'http://', 'https://', 'pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'torchvision://', 'modelzoo://',
        'open-mmlab://', 'openmmlab://', 'mmcls://', 'hf://'}
