# SPDX-License-Identifier: Apache-2.0
"""``data make`` and ``data check`` for videos, from a folder to predictions."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

import mmpetl
from mmpetl.commands.main import main
from mmpetl.datasets.collect import collect
from mmpetl.datasets.make import cut, write_lists
from mmpetl.datasets.survey import survey_videos
from mmpetl.registry import DATASETS
from mmpetl.training.own_config import bases, choose, config_text
from mmpetl.training.run import test as run_test
from mmpetl.training.run import train

TINY = dict(embed_dims=32, depth=2, num_heads=2, mlp_ratio=2)
LEVELS = {'dark side': 40, 'light': 200}


def videos(root, count, frames=12):
    """Class folders of short videos; no two are alike."""
    random = np.random.default_rng(0)
    for name, level in LEVELS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            writer = cv2.VideoWriter(str(root / name / f'{i:02d}.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 12, (64, 48))
            for _ in range(frames + i):
                writer.write(np.clip(random.normal(level, 20, (48, 64, 3)), 0, 255).astype(np.uint8))
            writer.release()
    return root


def shrink(config, **backbone):
    """The made config with a tiny model and no workers; everything else stays."""
    path = Path(config).parent / 'tiny.py'
    loaders = '\n'.join(
        f'{n}_dataloader = dict(_base_.{n}_dataloader, num_workers=0, persistent_workers=False) if '
        f'_base_.get("{n}_dataloader") else None' for n in ('train', 'val', 'test'))
    path.write_text(f"_base_ = './{Path(config).name}'\n{loaders}\n"
                    f'model = dict(backbone=dict(**{backbone!r}), cls_head=dict(in_channels=32))\n')
    return str(path)


@pytest.mark.parametrize('count', [1, 5])
def test_make_train_test_infer(count, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path / 'nothing'))
    folder = videos(tmp_path / 'clips', count)
    assert main(['data', 'make', 'clips', '--base', 'videomae-dinov2-small', '--method', 'lora', 'adaptformer', '--epochs',
                 '3']) == 0
    said = capsys.readouterr().out
    assert f'{2 * count} videos of 2 classes, 64 x 48 pixels, 12' in said and 'mmpetl train own_data/clips/clips_lora-ada' in said
    script = said.split('fetch:  python ')[1].split('\n')[0]  # the base is not there
    assert script.endswith('tools/prepare_motion_clips.py') and Path(script).is_file()
    made = 'own_data/clips/clips_lora-adaptformer_videomae-dinov2-small.py'
    assert main(['data', 'check', made, '--sheet', 'sheet.png']) == (count == 1)
    said = capsys.readouterr().out
    assert ('2 held-out videos are byte for byte in training' if count == 1 else 'no problem found') in said
    assert Image.open('sheet.png').size[0] > 900
    tiny = shrink(made, **TINY, init_cfg=dict(checkpoint=str(tmp_path / 'base.pth')))
    cfg = Config.fromfile(tiny)
    upstream = {k: v for k, v in cfg.model.backbone.items() if k not in ('type', 'petl', 'tune', 'init_cfg')}
    from mmaction.models.backbones.vit_mae import VisionTransformer  # mmpetl mends its import
    torch.save(dict(state_dict=VisionTransformer(**upstream).state_dict()), tmp_path / 'base.pth')
    assert not cfg.train_dataloader.drop_last and cfg.train_dataloader.batch_size == min(2 * (count if count < 5 else 3), 8)
    assert bool(cfg.val_dataloader) == (count == 5) and cfg.model.cls_head.num_classes == 2
    train([tiny, '--work-dir', 'out'])
    adapter = 'out/adapter.safetensors'
    metrics = run_test([tiny, adapter, '--work-dir', 'out/test', '--dump', 'scores.pkl'])
    scores = {Path(s['filename']).relative_to(folder): np.asarray(s['pred_score']) for s in pickle.load(open('scores.pkl', 'rb'))}
    assert len(scores) == 2 and metrics
    found = mmpetl.infer(tiny, adapter, [str(folder / name) for name in scores], device='cpu')
    for result, score in zip(found, scores.values()):
        assert np.abs(result['pred_scores'] - score).max() < 1e-5 and result['pred_class'] in LEVELS


def test_every_base_reads_its_clips(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    videos(tmp_path / 'clips', 1, frames=40)
    found = collect('clips')
    lists = cut(found, survey_videos([found.full(item) for item in found.items], 'exists'))
    write_lists(lists, '.')
    init_default_scope('mmaction')
    decoded = set()
    for base in bases('video'):
        Path('own.py').write_text(config_text(lists, choose('video', base), 'clips', '.'))
        cfg = Config.fromfile('own.py')
        backbone = cfg.model.backbone
        pipelines = repr((cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline))
        told = {**backbone, **backbone.get('config', {})}
        frames = next((told[k] for k in ('num_frames', 'frames', 'frames_per_clip', 'temporal_size', 't_size')
                       if k in told), 16 if backbone.type.endswith('MViT') else 8)  # where upstream's default counts
        shape = (frames, told.get('img_size', 224))
        if (pipelines, shape) in decoded:
            continue
        decoded.add((pipelines, shape))
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            item = DATASETS.build(loader.dataset)[0]
            views = (item[0] if isinstance(item, list) else item)['inputs']
            assert views.shape[2:] == (shape[0], shape[1], shape[1]), base
    assert len(decoded) >= 3 and len(bases('video')) >= 8


def test_unreadable_videos_and_class_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    videos(tmp_path / 'clips', 2)
    (tmp_path / 'clips/light/00.mp4').write_text('no video')
    assert main(['data', 'check', 'clips']) == 1
    assert 'light/00.mp4 cannot be read' in capsys.readouterr().out
    assert main(['data', 'make', 'clips']) == 1
    assert '1 of 4 videos cannot be read' in capsys.readouterr().err
    assert main(['data', 'make', 'clips', '--skip-unreadable']) == 0
    assert Path('own_data/clips/classes.txt').read_text() == 'dark side\nlight\n'
    assert sorted(Path('own_data/clips/train.txt').read_text().splitlines()) == [
        'dark side/00.mp4 0', 'dark side/01.mp4 0', 'light/01.mp4 1']
