# SPDX-License-Identifier: Apache-2.0
"""A run that does not do its work fails in one line and leaves no result; data, classes and head are compared first."""

import sys
from pathlib import Path

import pytest
import torch
import toy_chance
from mmengine.config import Config

from mmpetl.clean_errors import run_cleanly
from mmpetl.training import run
from mmpetl.training.run import build_runner
from mmpetl.weights import adapter_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import shipped  # noqa: E402


@pytest.fixture(scope='module')
def chance(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('guards')
    path = toy_chance.write(folder)
    (folder / 'list.txt').write_text('dark/dark0.png 0\n\nlight/light0.png 1\nlight/light1.png 2\n')
    (folder / 'stray/.cache').mkdir(parents=True)
    for name in ('dark', 'light'):
        (folder / 'stray' / name).symlink_to(folder / 'data' / name)
    (folder / 'stray/.cache/a.png').write_bytes((folder / 'data/dark/dark0.png').read_bytes())
    return folder, path


#: Options, and words of the line that they lead to.
BAD = {
    'rate of zero': ('optim_wrapper.optimizer.lr=0', ('optim_wrapper.optimizer.lr=0', 'give a learning rate above 0')),
    'rate without bounds': ('optim_wrapper.optimizer.lr=1e30', ('optim_wrapper.optimizer.lr=1e+30', 'at most 1e6')),
    'rate without effect': ('optim_wrapper.optimizer.lr=1e-30', ('nothing moved', 'optim_wrapper.optimizer.lr')),
    'method without effect': ('model.backbone.petl.1.scale=0. optim_wrapper.optimizer.lr=0.01', ('scale', )),
    'fewer images than a batch': ('train_dataloader.batch_size=64 train_dataloader.drop_last=True',
                                  ('24 sample(s)', 'batch_size=64', 'drop_last')),
    'no epoch': ('train_cfg.max_epochs=0', ('train_cfg.max_epochs=0', )),
    'head too small': ('model.head.num_classes=1', ('model.head.num_classes=1', '2 classes', 'dark, light')),
    'head too large': ('model.head.num_classes=10', ('model.head.num_classes=10', '2 classes', 'dark, light')),
    'other order of classes': ("val_dataloader.dataset.classes=['light','dark']",
                               ('val_dataloader.dataset', "'light'", "'dark'", 'same order')),
    'hidden folder': ('train_dataloader.dataset.data_root={folder}/stray train_dataloader.dataset.classes=None '
                      'model.head.num_classes=3', ('hidden folder', '.cache', 'train_dataloader.dataset.classes')),
    'layer-wise decay': ('optim_wrapper.constructor=LearningRateDecayOptimWrapperConstructor',
                         ('optim_wrapper.constructor', 'LoRA, AdaptFormer', 'mmpetl.TrainableOptimWrapperConstructor')),
}


@pytest.mark.parametrize('name', BAD)
def test_one_line_and_no_result(chance, capfd, name):
    folder, path = chance
    options, words = BAD[name]
    work_dir = folder / name.replace(' ', '_')
    given = options.format(folder=folder, data=folder / 'data').split(' ')
    assert toy_chance.train(path, work_dir, '--cfg-options', *given) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith('error')]
    assert len(lines) == 1 and all(word in lines[0] for word in words), lines
    assert not list(work_dir.glob('*adapter.safetensors'))


def test_label_outside_the_head(chance):
    """File, line, label and key; the second line of the list is empty."""
    folder, path = chance
    cfg = toy_chance.config(path, folder / 'labels')
    cfg.train_dataloader.dataset = dict(
        type='mmpetl.ListDataset', data_root=str(folder / 'data'), ann_file=str(folder / 'list.txt'),
        pipeline=cfg.pipeline)
    with pytest.raises(ValueError, match=r'list.txt, line 4: label 2 of train_dataloader.dataset.*model.head.num_classes'):
        build_runner(cfg).train()


def test_numbers_are_checked_before_a_checkpoint_is_written(chance):
    from mmengine.hooks import Hook

    class Spoil(Hook):

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 5:
                with torch.no_grad():
                    runner.model.head.layers.head.bias.fill_(float('nan'))

    folder, path = chance
    runner = build_runner(toy_chance.config(path, folder / 'spoilt'))
    runner.register_hook(Spoil())
    with pytest.raises(ValueError, match=r'head.layers.head.bias \(1 of'):
        runner.train()
    assert [p.name for p in (folder / 'spoilt').glob('epoch_*')] == ['epoch_1.pth']


def test_a_loss_that_is_no_number_ends_the_run(chance):
    """Named with epoch and iteration; no checkpoint, no adapter."""
    from mmengine.hooks import Hook

    class Spoil(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 1:
                with torch.no_grad():
                    next(p for p in runner.model.backbone.parameters() if not p.requires_grad).fill_(float('nan'))

    folder, path = chance
    runner = build_runner(toy_chance.config(path, folder / 'no_number'))
    runner.register_hook(Spoil())
    with pytest.raises(ValueError, match='the loss became nan in epoch 1, iteration 3: lower the learning rate'):
        runner.train()
    assert not [*(folder / 'no_number').glob('epoch_*'), *(folder / 'no_number').glob('*adapter.safetensors')]


def test_base_in_load_from(chance):
    """Named once, it is found again by whoever uses the config."""
    folder, path = chance
    config = folder / 'load_from.py'
    config.write_text(f"_base_ = './{path.name}'\nload_from = r'{folder / 'base.pth'}'\n"
                      "model = dict(backbone=dict(init_cfg=None))\n")
    assert toy_chance.train(config, folder / 'loaded') == 0
    header = adapter_file.read_header(folder / 'loaded/adapter.safetensors')
    assert header['base']['id'] == 'base.pth'
    found = run.test([str(config), str(folder / 'loaded/adapter.safetensors'), '--work-dir', str(folder / 'tested')])
    assert found == pytest.approx(header['metrics'], abs=0)


def test_pictures_of_videos_with_several_views(tmp_path):
    config = shipped.shrink('configs/video_demo/lora.py', tmp_path / 'run')
    from mmpetl.tuning import write_adapter
    write_adapter(shipped.stir(Config.fromfile(str(config))), str(tmp_path / 'adapter.safetensors'))
    words = [str(config), str(tmp_path / 'adapter.safetensors'), '--work-dir', str(tmp_path / 'work'), '--show-dir',
             str(tmp_path / 'shown'), '--interval', '2']
    assert run_cleanly(run.test, words) == 0
    assert len(list((tmp_path / 'shown').iterdir())) == 2 and [p for p in (tmp_path / 'shown').rglob('*') if p.is_file()]
