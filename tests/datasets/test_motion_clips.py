# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import mmpetl  # noqa: F401
from mmpetl.datasets import motion_clips
from mmpetl.datasets.motion_clips import CLASSES, MOTIONS, render, time_code, write_clips
from mmpetl.datasets.video_io import VideoDecode, VideoInit
from mmpetl.datasets.video_lists import read_video_list

CROSS = np.full((28, 28), 255, np.uint8)
CROSS[12:16, 4:24] = CROSS[4:24, 12:16] = 0


def centre(frame):
    """Centre and extent of the ink, in pixels."""
    paper = np.median(frame.reshape(-1, 3), 0)
    y, x = np.nonzero(np.abs(frame - paper).sum(-1) > 60)
    return x.mean(), y.mean(), np.ptp(x)


@pytest.mark.parametrize('motion, axis', [('x', 0), ('y', 1), ('size', 2)])
def test_each_motion_changes_what_it_says(motion, axis):
    for seed in range(5):
        frames = render(CROSS, motion, np.random.default_rng(seed))
        assert frames.shape == (24, 96, 128, 3) and frames.dtype == np.uint8
        path = np.array([centre(f) for f in frames])
        moved = np.abs(path[-1] - path[0])
        assert (np.diff(path[:, axis]) > -1.).all() and moved[axis] > 12
        assert (np.delete(moved, axis) < 2.5).all()


def decode(path):
    return VideoDecode()(dict(VideoInit()(dict(filename=str(path))), frame_inds=np.arange(24)))['imgs']


def test_classes_share_drawings_and_pairs_are_reversed(tmp_path):
    counts = write_clips(tmp_path, dict(train=[CROSS, CROSS.T], test=[CROSS]))
    assert counts == dict(train=12, test=6)
    for part, drawings in (('train', 2), ('test', 1)):
        entries = read_video_list(str(tmp_path / f'{part}.csv'), len(CLASSES))
        assert [e.label for e in entries] == list(range(6)) * drawings
        # Exactly one clip of every class per drawing.
        assert {e.path for e in entries} == {f'{part}/{i:03d}_{name}.mp4' for i in range(drawings) for name in CLASSES}
    for one, other in (('left', 'right'), ('up', 'down'), ('grow', 'shrink')):
        a, b = (np.stack(decode(tmp_path / f'train/000_{name}.mp4')).astype(int) for name in (one, other))
        difference = np.abs(a - b[::-1]).mean()
        assert difference < 2 < np.abs(a - b).mean(), 'the same frames in the opposite order, up to the encoder'
    x = [centre(f)[0] for f in decode(tmp_path / 'test/000_left.mp4')]
    assert x[0] - x[-1] > 12
    assert MOTIONS['left'] == ('x', True)


def test_prepared_clips_are_reused(tmp_path, monkeypatch):
    import cv2
    source = tmp_path / 'quickdraw20'
    source.mkdir()
    for i in range(4):
        cv2.imwrite(str(source / f'{i} a.png'), CROSS)
    for part in ('train', 'test'):
        (source / f'{part}.txt').write_text(''.join(f'{i} a.png {i}\n' for i in range(4)))
    target = motion_clips.prepare_clips(tmp_path / 'motion6', source, 2, 1)
    assert json.loads((target / 'about.json').read_text())['clips'] == dict(train=12, test=6)
    monkeypatch.setattr(motion_clips, 'write_clips', lambda *args, **kwargs: pytest.fail('made again'))
    motion_clips.prepare_clips(tmp_path / 'motion6', source, 2, 1)
    with pytest.raises(ValueError, match='has 4 drawings, 5 are needed'):
        motion_clips.prepare_clips(tmp_path / 'motion6', source, 5, 1)
    assert (target / 'train/001_up.mp4').is_file(), 'a failed run leaves the old clips alone'


def test_code_of_time():
    code = time_code(4, 384)
    torch.testing.assert_close(code.mean(0), torch.zeros(384), atol=1e-6, rtol=0)
    assert float(code.std()) == pytest.approx(1., abs=1e-3)
    assert torch.pdist(code).min() > 5, 'all times differ'


def tiny(tmp_path):
    """Write an image model; returns the config of a video backbone that takes it."""
    from safetensors.torch import save_file
    init_default_scope('mmpretrain')
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    image = MODELS.build(
        dict(
            type='mmpetl.VisionTransformer',
            arch=arch,
            img_size=28,
            patch_size=14,
            norm_cfg=dict(type='LN', eps=1e-6),
            layer_scale_init_value=1e-5))
    for parameter in image.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file({k: v for k, v in image.state_dict().items() if not k.startswith('petl')}, tmp_path / 'image.safetensors')
    backbone = Config.fromfile('configs/_base_/backbones/videomae-dinov2-small.py').model.backbone.to_dict()
    backbone.update(img_size=28, embed_dims=16, depth=2, num_heads=2, mlp_ratio=2)
    return backbone


def test_inflated_model(tmp_path):
    """Without the code of time the order of the frames does not matter, be they turned by twos or by one; with it, it
    does."""
    cfg = tiny(tmp_path)
    clip = torch.randn(2, 3, 8, 28, 28, dtype=torch.double)
    turned = clip.unflatten(2, (4, 2)).flip(2).flatten(2, 3)
    out = {}
    for timed in (False, True):
        model = MODELS.build({**cfg, 'init_cfg': None})
        state = motion_clips.inflate(tmp_path / 'image.safetensors', cfg, timed)
        motion_clips.write_weights(tmp_path / 'video.safetensors', state)
        model.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'video.safetensors'))
        model.init_weights()
        model.double().eval()
        with torch.no_grad():
            out[timed] = model(clip), model(turned), model(clip.flip(2))
    torch.testing.assert_close(out[False][0], out[False][1], atol=1e-10, rtol=0)
    torch.testing.assert_close(out[False][0], out[False][2], atol=1e-10, rtol=0)
    assert (out[True][0] - out[True][1]).abs().max() > 1e-4
