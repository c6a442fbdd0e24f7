# SPDX-License-Identifier: Apache-2.0
"""Both video families from list files to multi-view scores, at toy size: tools/train.py and tools/test.py, one process
and two."""

import json
import pickle

import cv2
import numpy as np
import pytest
import torch
import toy_run
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from safetensors.torch import load_file, save_file
from toy_run import ROOT, command

from mmpetl.training import run

CONFIG = """
_base_ = [r'{root}/configs/_base_/default_runtime_video.py', r'{root}/configs/_base_/schedules/{schedule}.py']
model = dict(
    type='Recognizer3D',
    data_preprocessor=dict(type='ActionDataPreprocessor', mean=[127.] * 3, std=[64.] * 3, format_shape='NCTHW'),
    backbone=dict({backbone}, init_cfg=dict(type='Pretrained', checkpoint=r'{data}/{name}.safetensors')),
    cls_head={head})
open_decode = [dict(type='mmpetl.VideoInit'), {sample}, dict(type='mmpetl.VideoDecode')]
train_pipeline = [
    *open_decode, dict(type='Resize', scale=(32, 32), keep_ratio=False),
    dict(type='FormatShape', input_format='NCTHW'), dict(type='PackActionInputs')]
test_pipeline = [
    dict(type='mmpetl.VideoInit'), {views}, dict(type='mmpetl.VideoDecode'), dict(type='mmpetl.ShortSideResize', size=32),
    dict(type='mmpetl.ViewCrops', crop_size=32, num_crops=3), dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs', meta_keys=('filename', ))]
data = dict(type='mmpetl.VideoListDataset', data_root=r'{data}', num_classes=5)
train_dataloader = dict(
    batch_size={batch}, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), {collate}
    dataset=dict(ann_file='train.csv', pipeline=train_pipeline, {repeats} **data))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='test.csv', pipeline=test_pipeline, test_mode=True, **data))
val_dataloader = test_dataloader
val_evaluator = dict(type='AccMetric')
test_evaluator = [val_evaluator, dict(type='mmpetl.ViewAccuracy')]
train_cfg = dict(max_epochs=2, val_interval=2)
param_scheduler = None
auto_scale_lr = dict(enable=False)
optim_wrapper = dict(optimizer=dict(lr=0.01))
default_hooks = dict(logger=dict(interval=1))
"""
SWIN = dict(
    schedule='vpetl_sgd_70e',
    backbone=
    "type='mmpetl.SwinTransformer3D', arch=dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2]), window_size=(4, 4, 4), "
    "out_indices=(1, ), drop_path_rate=0., petl=[dict(type='PATT', ops='kv', mid_dims=4), "
    "dict(type='AdaptFormer', mid_dims=4, input='normed', inside_drop_path=True, drop_rate=0.)]",
    head="dict(type='mmpetl.VideoSwinHead', num_classes=5, in_channels=16, average_clips='score', keep_views=True)",
    sample=
    "dict(type='SampleFrames', clip_len=8, frame_interval=2, num_clips=1, out_of_bound_opt='repeat_last', "
    "test_mode=True)",
    views="dict(type='mmpetl.VideoMAESampleFrames', clip_len=8, frame_interval=2, num_clips=4, test_mode=True)",
    collate='',
    repeats='',
    average='score',
    num_views=12)
MAE = dict(
    schedule='apt_adamw_100e',
    backbone="type='mmpetl.VideoMAE', img_size=32, patch_size=8, embed_dims=16, depth=2, num_heads=2, num_frames=8, "
    "norm_cfg=dict(type='LN', eps=1e-6), petl=[dict(type='APT', num_tokens=3)], tune=['fc_norm.*']",
    head=
    "dict(type='mmpetl.VideoMAEHead', num_classes=5, in_channels=16, label_smooth_eps=0.1, average_clips='prob', "
    "keep_views=True)",
    sample="dict(type='mmpetl.VideoMAESampleFrames', mode='uniform', clip_len=8, test_mode=True)",
    views="dict(type='mmpetl.VideoMAESampleFrames', mode='uniform', clip_len=8, num_clips=2, test_mode=True)",
    collate="collate_fn=dict(type='repeat_pseudo_collate'),",
    repeats='num_repeats=2,',
    average='prob',
    num_views=6)
FAMILIES = dict(video_swin=SWIN, videomae=MAE)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Eight videos to train on and seven (an odd number) to test on."""
    root = tmp_path_factory.mktemp('runs')
    for part, count in (('train', 8), ('test', 7)):
        lines = []
        for i in range(count):
            name = f'{part} {i}.mp4'
            writer = cv2.VideoWriter(str(root / name), cv2.VideoWriter_fourcc(*'mp4v'), 12, (64, 48))
            for t in range(14 + i):
                frame = np.full((48, 64, 3), 30 * i, np.uint8)
                frame[:, (3 * t + 9 * i) % 56:][:, :8] = 255
                writer.write(frame)
            writer.release()
            lines.append(f'{name},{i % 5}\n')
        (root / f'{part}.csv').write_text(''.join(lines))
    return root


def write(folder, family, batch=4):
    path = folder / f'{family}.py'
    options = {k: v for k, v in FAMILIES[family].items() if k not in ('average', 'num_views')}
    path.write_text(CONFIG.format(root=ROOT, data=folder, batch=batch, name=family, **options))
    init_default_scope('mmaction')
    torch.manual_seed(0)
    trunk = MODELS.build({**Config.fromfile(path).model.backbone, 'petl': [], 'init_cfg': None}).state_dict()
    save_file({k: v.contiguous() for k, v in trunk.items()}, folder / f'{family}.safetensors')


def dumped(path):
    return {sample['filename'].rsplit('/', 1)[1]: sample for sample in pickle.loads(path.read_bytes())}


@pytest.mark.slow
@pytest.mark.parametrize('family', list(FAMILIES))
def test_train_and_test_with_one_process_and_two(folder, family):
    """Two processes learn the same adapter as one with twice the batch, and their merged scores are those of one
    process."""
    write(folder, family)
    done = command(
        toy_run.sys.executable, ROOT / 'tools/train.py', f'{family}.py', '--work-dir', f'{family}_1', cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    done = command(
        'bash',
        ROOT / 'tools/dist_train.sh',
        f'{family}.py',
        2,
        '--work-dir',
        f'{family}_2',
        '--cfg-options',
        'train_dataloader.batch_size=2',
        cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(folder / f'{family}_{n}/adapter.safetensors') for n in (1, 2))
    assert one.keys() == two.keys() and any('petl' in key for key in one) and any('cls_head' in key for key in one)
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=1e-3, msg=lambda text, key=key: f'{key}: {text}')
    for n, script in ((1, [
            toy_run.sys.executable, ROOT / 'tools/test.py', f'{family}.py', f'{family}_2/adapter.safetensors'
    ]), (2, ['bash', ROOT / 'tools/dist_test.sh', f'{family}.py', f'{family}_2/adapter.safetensors', 2])):
        done = command(
            *script,
            '--work-dir',
            f'{family}_t{n}',
            '--dump',
            f'{family}_{n}.pkl',
            '--out',
            f'{family}_{n}.json',
            '--out-item',
            'metrics',
            cwd=folder)
        assert done.returncode == 0, done.stderr[-2000:]
    single, merged = (dumped(folder / f'{family}_{n}.pkl') for n in (1, 2))
    assert set(single) == set(merged) == {f'test {i}.mp4' for i in range(7)}
    for name in single:
        assert merged[name]['view_scores'].shape == (FAMILIES[family]['num_views'], 5)
        torch.testing.assert_close(single[name]['view_scores'], merged[name]['view_scores'], atol=1e-5, rtol=1e-4)
        views = merged[name]['view_scores']
        average = views.mean(0) if FAMILIES[family]['average'] == 'score' else views.softmax(-1).mean(0)
        torch.testing.assert_close(merged[name]['pred_score'], average, atol=1e-6, rtol=1e-5)
    assert json.loads((folder / f'{family}_1.json').read_text()) == json.loads(
        (folder / f'{family}_2.json').read_text())


def losses(work_dir):
    """Losses of all training iterations of the latest run."""
    lines = max(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [record['loss'] for record in map(json.loads, lines) if 'loss' in record]


@pytest.mark.parametrize('family', list(FAMILIES))
def test_amp_on_the_cpu(folder, family, monkeypatch):
    """bfloat16 changes the losses a little, and not more."""
    monkeypatch.chdir(folder)
    write(folder, family)
    options = ['--no-validate', '--cfg-options', 'train_cfg.max_epochs=2', 'train_cfg.val_interval=3']
    for name, flags in (('fp32', []), ('amp', ['--amp'])):
        run.train([f'{family}.py', '--work-dir', f'{family}_{name}', *flags, *options])
    plain, mixed = losses(folder / f'{family}_fp32'), losses(folder / f'{family}_amp')
    assert len(plain) == 4 and plain != mixed
    assert np.abs(np.subtract(plain, mixed)).max() < 0.02


def strategy(folder, family, kind):
    """A config for several processes by DDP, FSDP or DeepSpeed, with clipping, which has to see the gradients of all
    processes."""
    write(folder, family, batch=2)
    bases = [f'{family}.py'] + ([] if kind == 'ddp' else [str(ROOT / f'configs/_base_/strategies/{kind}.py')])
    (folder /
     f'{family}_{kind}.py').write_text(f'_base_ = {bases}\noptim_wrapper = dict(clip_grad=dict(max_norm=0.05))\n')


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['fsdp', 'deepspeed'])
@pytest.mark.parametrize('family', list(FAMILIES))
def test_strategies_equal_ddp(folder, family, kind):
    """FSDP and DeepSpeed learn what DDP learns, in one go and resumed, and test it with the same result."""
    if kind == 'deepspeed':
        pytest.importorskip('deepspeed', reason='DeepSpeed is not installed')
    for name, options in (('ddp', []), (kind, ['train_cfg.max_epochs=1',
                                               'train_cfg.val_interval=1']), (kind, ['resume=True'])):
        strategy(folder, family, name)
        done = command(
            'bash',
            ROOT / 'tools/dist_train.sh',
            f'{family}_{name}.py',
            2,
            '--work-dir',
            f'{family}_{name}',
            '--cfg-options',
            'default_hooks.checkpoint.max_keep_ckpts=-1',
            *options,
            cwd=folder)
        assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(
        losses(folder / f'{family}_{kind}'), losses(folder / f'{family}_ddp')[2:], atol=1e-5, rtol=0)
    ours, theirs = (load_file(folder / f'{family}_{name}/adapter.safetensors') for name in (kind, 'ddp'))
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(
            ours[key], theirs[key], atol=1e-6, rtol=1e-4, msg=lambda text, key=key: f'{key}: {text}')
    done = command(
        'bash',
        ROOT / 'tools/dist_test.sh',
        f'{family}_{kind}.py',
        f'{family}_ddp/adapter.safetensors',
        2,
        '--work-dir',
        f'{family}_t',
        '--out',
        'ours.json',
        '--out-item',
        'metrics',
        cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    done = command(
        toy_run.sys.executable,
        ROOT / 'tools/test.py',
        f'{family}_{kind}.py',
        f'{family}_{kind}/adapter.safetensors',
        '--work-dir',
        f'{family}_t',
        '--out',
        'theirs.json',
        '--out-item',
        'metrics',
        cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((folder / 'ours.json').read_text()) == json.loads((folder / 'theirs.json').read_text())
