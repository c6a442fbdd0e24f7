# SPDX-License-Identifier: Apache-2.0
"""Features on disk are used again only while they are those of the run; else one line says why they are computed anew."""

import json
import os
import resource
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import toy_run
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.runner import Runner
from toy_cache import config, quick_runner  # noqa: F401

from mmpetl.features import hook as hook_module
from mmpetl.features import store as store_module
from mmpetl.features.data import data_identity
from mmpetl.features.hook import FeatureCacheHook
from mmpetl.features.store import FeatureStore, Feed
from mmpetl.training.parallel import FSDPStrategy

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    return Config.fromfile(toy_run.write(tmp_path_factory.mktemp('toy')))


@pytest.fixture(scope='module')
def kept(toy, tmp_path_factory):
    """Folder of complete features of SynQT, and what they are."""
    folder = tmp_path_factory.mktemp('kept')
    return folder, filled(toy, folder, folder)[1]


@pytest.fixture
def folder(kept, tmp_path):
    """A copy of the folder."""
    return Path(shutil.copytree(kept[0] / 'features', tmp_path / 'features'))


def filled(toy, tmp_path, root, name='SynQT', change=None, **options):
    """The hook before the first step and the features that it holds, and whether the base ran for them."""
    cfg = config(toy, tmp_path, name)
    if change:
        change(cfg)
    runner = Runner.from_cfg(cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    lines, calls = [], []
    runner.logger.warning = lambda text, *_: lines.append(text)
    runner.model.backbone.layers[0].register_forward_hook(lambda *_: calls.append(1))
    hook = FeatureCacheHook(place='disk', folder=str(Path(root) / 'features'), **options)
    hook.before_train(runner)
    features = [t.clone() for t in torch.utils._pytree.tree_leaves(hook.stores['train'].fetch(range(
        hook.stores['train'].rows)))]
    hook.after_train(runner)
    return lines, features, len(calls)


def parts(root):
    return [p.name for p in Path(root).rglob('*.part')]


def test_a_second_run_reads_what_the_first_left(toy, kept, folder, tmp_path):
    """One batch goes through the base, for comparison; nothing is written."""
    before = {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
    lines, features, calls = filled(toy, tmp_path, tmp_path)
    assert (lines, calls) == ([], 1) and all(map(torch.equal, features, kept[1]))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob('*')} == before


def missing(key):
    (key / '0.bin').unlink()


def empty(key):
    (key / '0.bin').write_bytes(b'')


def short(key):
    (key / '1.bin').write_bytes((key / '1.bin').read_bytes()[:-4])


def zeros(key):
    data = (key / '1.bin').read_bytes()
    (key / '1.bin').write_bytes(data[:-64] + bytes(64))


def link(key):
    (key / '0.bin').rename(key / 'elsewhere')
    (key / '0.bin').symlink_to(key / 'elsewhere')


def marker_cut(key):
    text = (key / 'complete.json').read_text()
    (key / 'complete.json').write_text(text[:len(text) // 2])


def marker_of_before(key):
    (key / 'complete.json').write_text(json.dumps(dict(rows=24, shapes=[])))


def no_marker(key):
    (key / 'complete.json').unlink()
    (key / '0.bin').write_bytes(b'cut')


@pytest.mark.parametrize('damage,line', [
    (missing, '0.bin is no table'), (empty, '0.bin is no table'), (short, '1.bin is no table'), (zeros, 'are damaged'),
    (link, '0.bin is no table'), (marker_cut, 'complete.json is damaged'), (marker_of_before, 'of another version'),
    (no_marker, None)], ids=lambda v: getattr(v, '__name__', None))
def test_damaged_features_are_computed_again(toy, kept, folder, tmp_path, damage, line):
    key, = folder.iterdir()
    damage(key)
    lines, features, calls = filled(toy, tmp_path, tmp_path)
    assert all(map(torch.equal, features, kept[1])) and calls >= 3
    assert (line is None and not lines) or line in lines[0] and 'the features are computed again' in lines[0], lines
    assert filled(toy, tmp_path, tmp_path)[::2] == ([], 1)  # mended


def test_a_picture_that_hides_its_change_is_seen(toy, kept, folder, tmp_path):
    """Another picture of the same name, size and time, as archives unpack them."""
    picture = sorted(Path(toy.train_dataloader.dataset.data_root).rglob('*.png'))[20]
    content, stat = picture.read_bytes(), picture.stat()
    other = cv2.imencode('.png', np.full((16, 16, 3), 9, np.uint8))[1].tobytes()
    try:
        picture.write_bytes(other + bytes(len(content) - len(other)))  # readers of PNG stop at its end
        os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        lines, features, _ = filled(toy, tmp_path, tmp_path)
    finally:
        picture.write_bytes(content)
        os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(lines) == 1 and f'{picture} is another input than when those in {folder}' in lines[0]
    changed = {int(i) for a, b in zip(features, kept[1]) for i in (a != b).flatten(1).any(1).nonzero()}
    assert len(changed) == 1


def test_a_base_that_hides_its_change_is_seen(toy, kept, folder, tmp_path, monkeypatch):
    """As by an attribute that no key knows."""
    run = Feed.capture
    monkeypatch.setattr(Feed, 'capture', lambda self, base: torch.utils._pytree.tree_map(lambda t: t * 1.01, run(
        self, base)))
    lines, features, _ = filled(toy, tmp_path, tmp_path)
    assert len(lines) == 1 and f'the base gives other features than those in {folder}' in lines[0]
    assert all(torch.equal(a, b * 1.01) for a, b in zip(features, kept[1]))


def bf16(cfg):
    cfg.optim_wrapper.type = 'mmpetl.CpuAmpOptimWrapper'


def rounded_base(cfg):
    cfg.model.backbone.base_dtype = 'bf16'


def colours(cfg):
    cfg.data_preprocessor.to_rgb = True


def larger(cfg):
    load, pack = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [load, dict(type='Resize', scale=24), dict(type='CenterCrop', crop_size=16),
                                             pack]


def renamed(cfg):
    cfg.train_dataloader.dataset.classes = ['night', 'light']
    root = Path(cfg.train_dataloader.dataset.data_root)
    new = Path(cfg.work_dir) / 'data'
    shutil.copytree(root / 'dark', new / 'night')
    shutil.copytree(root / 'light', new / 'light')
    cfg.train_dataloader.dataset.data_root = str(new)


def added(cfg):
    root, new = Path(cfg.train_dataloader.dataset.data_root), Path(cfg.work_dir) / 'data'
    shutil.copytree(root, new)
    shutil.copyfile(root / 'dark/dark0.png', new / 'light/one more.png')
    cfg.train_dataloader.dataset.data_root = str(new)


def removed(cfg):
    cfg.train_dataloader.dataset.indices = 23


def newer(cfg):
    hook_module.__version__ = '99.0'


def newer_torch(cfg):
    torch.__version__ = torch.torch_version.TorchVersion('99.0')


def other_batch(cfg):
    cfg.train_dataloader.batch_size = 6


def absorb(cfg):
    cfg.model.backbone.petl[0] = dict(cfg.model.backbone.petl[0], context='absorb')


@pytest.mark.parametrize('dtype, factor, alike', [
    (torch.float32, 1.0005, True), (torch.float32, 1.002, False), (torch.bfloat16, 1.01, True), (torch.bfloat16, 1.04, False)])
def test_how_far_features_may_be_off(dtype, factor, alike, tmp_path):
    features = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    store = FeatureStore(features, 4, 4, CPU, 'disk', folder=tmp_path)
    store.put(range(4), features)
    assert store.is_like(range(4), (features.double() * factor).to(dtype)) == alike


@pytest.mark.parametrize(
    'change', [bf16, rounded_base, colours, larger, renamed, added, removed, newer, newer_torch, other_batch, absorb],
    ids=lambda v: v.__name__)
def test_another_run_has_features_of_its_own(toy, kept, folder, tmp_path, change, monkeypatch):
    """Beside those that are there, and the same as in an empty folder."""
    for module in (hook_module, torch):  # a change of it ends with the test
        monkeypatch.setattr(module, '__version__', module.__version__)
    lines, features, _ = filled(toy, tmp_path / 'a', tmp_path, change=change)
    assert not lines and len(list(folder.iterdir())) == 2
    fresh = filled(toy, tmp_path / 'b', tmp_path / 'empty', change=change)[1]
    assert all(map(torch.equal, features, fresh))


def test_settings_of_a_preprocessor_that_are_private_count():
    class Data(list):
        def get_data_info(self, i):
            return {}

    def identity(**options):
        model = torch.nn.Module()
        model.data_preprocessor = ImgDataPreprocessor(mean=[1.] * 3, std=[1.] * 3, **options)
        return data_identity(Data(), model)

    assert identity() == identity() != identity(bgr_to_rgb=True)


# -- where nothing can be written -------------------------------------------------------------------------------------


def test_a_full_disk_is_an_error_with_the_name_and_leaves_nothing(toy, tmp_path):
    """Not a signal in the middle of the pass: room is taken before anything is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError) as error:
            filled(toy, tmp_path, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Path(error.value.filename).parent.parent == tmp_path / 'features' and '.part' not in error.value.filename
    assert not list((tmp_path / 'features').iterdir())
    assert filled(toy, tmp_path, tmp_path)[2] == 3


def test_a_file_in_place_of_the_folder_is_named(toy, tmp_path):
    (tmp_path / 'features').write_text('no folder')
    with pytest.raises(OSError) as error:
        filled(toy, tmp_path, tmp_path)
    assert str(error.value.filename).startswith(str(tmp_path / 'features')) and '.part' not in str(error.value.filename)


def test_features_that_are_found_are_not_written_to(tmp_path):
    """So a folder may be for reading only, and a step that writes into its features leaves the file alone."""
    features = torch.randn(2, 3)
    FeatureStore(features, 2, 2, CPU, 'disk', folder=tmp_path).put([0, 1], features)
    store = FeatureStore(features, 2, 2, CPU, folder=tmp_path, found=True)
    assert store.place == 'disk' and torch.equal(store.fetch([1, 0]), features[[1, 0]])
    store.tables[0].zero_()
    assert torch.equal(FeatureStore(features, 2, 2, CPU, folder=tmp_path, found=True).fetch([0, 1]), features)


def test_a_run_that_is_interrupted_leaves_nothing(toy, kept, tmp_path, monkeypatch):
    calls, run = [], Feed.capture

    def cut(self, base):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, base)

    monkeypatch.setattr(Feed, 'capture', cut)
    with pytest.raises(KeyboardInterrupt):
        filled(toy, tmp_path, tmp_path)
    assert not list((tmp_path / 'features').iterdir())
    lines, features, _ = filled(toy, tmp_path, tmp_path)
    assert not lines and all(map(torch.equal, features, kept[1]))


def test_two_runs_fill_one_folder(toy, kept, tmp_path, monkeypatch):
    """The second begins and ends while the first is under way."""
    calls, run, other = [], Feed.capture, []

    def meanwhile(self, base):
        calls.append(1)
        if len(calls) == 2:
            other.append(filled(toy, tmp_path / 'other', tmp_path))
        return run(self, base)

    monkeypatch.setattr(Feed, 'capture', meanwhile)
    for lines, features, _ in (filled(toy, tmp_path, tmp_path), *other):
        assert not lines and all(map(torch.equal, features, kept[1]))
    assert len(list((tmp_path / 'features').iterdir())) == 1 and not parts(tmp_path)


def test_processes_on_several_machines_are_refused(toy, tmp_path, monkeypatch):
    """Each would see its own rows alone."""
    monkeypatch.setattr(hook_module, 'all_gather_object', lambda _: ['one', 'two'])
    with pytest.raises(ValueError, match="several machines cannot fill one table on disk; set place='device'"):
        filled(toy, tmp_path, tmp_path)
    assert not parts(tmp_path)


def test_a_base_that_is_shared_out_is_refused(toy, tmp_path):
    runner = Runner.from_cfg(config(toy, tmp_path))
    runner.strategy = FSDPStrategy.__new__(FSDPStrategy)
    with pytest.raises(ValueError, match='under FSDPStrategy no process holds the base'):
        FeatureCacheHook().before_train(runner)


# -- room -------------------------------------------------------------------------------------------------------------


def test_a_place_that_is_named_must_hold_the_features(monkeypatch, tmp_path):
    features = torch.zeros(2, 100)
    monkeypatch.setattr(store_module, 'free_bytes', lambda *_: 799)
    for place in ('device', 'host', 'disk'):
        with pytest.raises(ValueError, match=f'more than what is free .{place}'):
            FeatureStore(features, 2, 2, CPU, place, folder=tmp_path)
    monkeypatch.setattr(store_module, 'free_bytes', lambda *_: 800)
    assert FeatureStore(features, 2, 2, CPU, 'host').place == 'host'  # all of it, where the user says so
    with pytest.raises(ValueError, match='half of what is free'):
        FeatureStore(features, 2, 2, CPU, folder=tmp_path)


def test_pinned_memory_and_processes_are_counted():
    """Pinned memory comes in powers of two; each process has a table of its own, but on disk."""
    store = FeatureStore(torch.zeros(2, 3), 2, 2, CPU, 'host')
    assert store._needs([24], None, 1) == dict(device=24, host=24, disk=24)
    assert store._needs([24], 'host', 3) == dict(host=72) and store._needs([24], None, 3) == dict(disk=24)
    store.device = torch.device('cuda', 1)
    store.nbytes = 120
    assert store._needs([100, 20], None, 1) == dict(device=120, host=128 + 32, disk=120)
    assert store._needs([100, 20], 'device', 2) == dict(device=120)


def test_files_in_memory_do_not_count_against_a_control_group(monkeypatch, tmp_path):
    numbers = {'memory.max': f'{100 << 20}', 'memory.current': f'{90 << 20}', 'memory.stat': f'anon 5\ninactive_file {50 << 20}\n'}
    for name, text in numbers.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(store_module, 'Path', lambda path: tmp_path / os.path.basename(path))
    assert store_module.free_host_bytes() == 60 << 20


def test_the_place_is_chosen_by_one_process(tmp_path):
    asked = []

    def agreed(choose):
        asked.append(choose)
        return 'disk'

    store = FeatureStore(torch.zeros(2, 3), 2, 2, CPU, folder=tmp_path, processes=2, agreed=agreed)
    assert store.place == 'disk' and len(asked) == 1
