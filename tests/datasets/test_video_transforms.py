# SPDX-License-Identifier: Apache-2.0
import random
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import Compose
from PIL import Image

import mmpetl  # noqa: F401
from mmpetl.datasets.clip_augment import LEVELS, ClipRandAugment
from mmpetl.datasets.video_transforms import ShortSideResize, VideoMAESampleFrames, ViewCrops

GOLDEN = Path(__file__).parents[2] / '../shared/golden/apt_frames.npz'
CLIP = 16


def upstream(**config):
    import mmaction.datasets  # noqa: F401
    from mmaction.registry import TRANSFORMS
    return TRANSFORMS.build(config)


@pytest.fixture(scope='module')
def golden():
    if not GOLDEN.exists():
        pytest.skip(f'{GOLDEN} is not beside the checkout')
    return np.load(GOLDEN)


def test_sampling_equals_the_published_indices(golden):
    samplers = {
        'dense_train': VideoMAESampleFrames(),
        'ssv2_train': VideoMAESampleFrames(mode='uniform'),
        'dense_test5': VideoMAESampleFrames(num_clips=5, test_mode=True),
        'dense_test10': VideoMAESampleFrames(num_clips=10, test_mode=True),
        'ssv2_test': VideoMAESampleFrames(mode='uniform', num_clips=2, test_mode=True),
    }
    seen = short = 0
    for key in golden.files:
        name, _, rest = key.partition('/')
        if name not in samplers:
            continue
        length, _, seed = rest[1:].partition('/seed')
        if name == 'ssv2_train' and int(length) < CLIP:
            short += 1  # published: the first frame sixteen times
            continue
        if seed:
            np.random.seed(int(seed))
        found = samplers[name].sample(int(length))
        np.testing.assert_array_equal(found, golden[key].reshape(found.shape), err_msg=key)
        seen += 1
    assert seen + short == 12 * (2 + 2 + 1 + 1 + 1) and seen > 60


def test_crops_start_where_the_published_ones_do(golden):
    keys = [k for k in golden.files if k.startswith('crop_starts/')]
    assert keys
    for key in keys:
        height, width = map(int, key.split('/')[1].split('x'))
        assert ViewCrops(224, 3).starts(max(height, width)) == tuple(golden[key]), key


@pytest.mark.parametrize('length', [*range(1, 70), 100, 731])
def test_sampled_frames_exist(length):
    for options in (dict(), dict(mode='uniform'), dict(num_clips=4, test_mode=True), dict(num_clips=1, test_mode=True),
                    dict(mode='uniform', num_clips=2,
                         test_mode=True), dict(mode='uniform', num_clips=1, test_mode=True)):
        found = VideoMAESampleFrames(CLIP, 4, **options).sample(length)
        assert found.shape == (options.get('num_clips', 1), CLIP)
        assert found.min() >= 0 and found.max() < length
        assert (np.diff(found, axis=1) >= 0).all()


@pytest.mark.parametrize('length', range(1, CLIP))
def test_uniform_clips_of_short_videos_hold_all_frames(length):
    clip = VideoMAESampleFrames(CLIP, mode='uniform').sample(length)[0]
    counts = np.bincount(clip, minlength=length)
    assert len(counts) == length and counts.max() - counts.min() <= 1 and (np.diff(clip) >= 0).all()


@pytest.mark.parametrize('length', [16, 17, 31, 100, 731])
def test_uniform_sampling_equals_mmaction2_where_that_is_right(length):
    """mmaction2 draws the same frames, but hands them on as clips of one frame."""
    train = upstream(type='SampleFrames', clip_len=1, num_clips=CLIP)
    np.random.seed(3)
    theirs = train(dict(total_frames=length, start_index=0))['frame_inds']
    np.random.seed(3)
    np.testing.assert_array_equal(VideoMAESampleFrames(mode='uniform').sample(length)[0], theirs)
    test = upstream(type='SampleFrames', clip_len=1, num_clips=CLIP, twice_sample=True, test_mode=True)
    theirs = test(dict(total_frames=length, start_index=0))['frame_inds']
    np.testing.assert_array_equal(VideoMAESampleFrames(mode='uniform', num_clips=2, test_mode=True).sample(length),
                                  [theirs[CLIP:], theirs[:CLIP]])


def test_vpetl_training_clips_are_mmaction2s():
    """8 frames at stride 2: the offset is uniform in [0, n - 16], the last frame reached is repeated in short
    videos."""
    sample = upstream(type='SampleFrames', clip_len=8, frame_interval=2, num_clips=1, out_of_bound_opt='repeat_last')
    starts = {int(sample(dict(total_frames=20, start_index=0))['frame_inds'][0]) for _ in range(200)}
    assert starts == set(range(5))
    assert sample(dict(total_frames=6, start_index=0))['frame_inds'].tolist() == [0, 2, 4, 4, 4, 4, 4, 4]


def test_vpetl_test_clips():
    """The dossier's example: 91 frames at stride 2 give 46 frames and clips that start at the 0th, 12th, 25th and 38th
    of them."""
    views = VideoMAESampleFrames(8, 2, num_clips=4, test_mode=True).sample(91)
    assert views[:, 0].tolist() == [0, 24, 50, 76]
    assert views[3].tolist() == [76, 78, 80, 82, 84, 86, 88, 90]
    short = VideoMAESampleFrames(8, 2, num_clips=4, test_mode=True).sample(5)
    assert short.tolist() == [[0, 2, 4, 4, 4, 4, 4, 4]] * 4


def test_sampler_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="unknown mode 'densee'; did you mean 'dense'"):
        VideoMAESampleFrames(mode='densee')
    with pytest.raises(ValueError, match='two views'):
        VideoMAESampleFrames(mode='uniform', num_clips=5, test_mode=True)
    with pytest.raises(ValueError, match='needs test_mode=True'):
        VideoMAESampleFrames(num_clips=5)


@pytest.mark.parametrize('shape, expected', [((240, 320), (224, 298)), ((320, 240), (298, 224)),
                                             ((224, 224), (224, 224)), ((49, 65), (224, 297))])
def test_short_side_resize_rounds_down(shape, expected):
    results = ShortSideResize(224)(dict(imgs=[np.zeros((*shape, 3), np.uint8)]))
    assert results['imgs'][0].shape[:2] == results['img_shape'] == expected


@pytest.mark.parametrize('tall', [False, True])
def test_views_come_clip_by_clip_from_left_to_right(tall):
    """Every pixel tells its column and frame, so each view shows where it was cut."""
    clips, clip_len, size, long = 2, 3, 8, 13
    frames = [
        np.stack([np.tile(
            np.arange(long),
            (size, 1)), np.full(
                (size, long), f), np.zeros((size, long))], -1).astype(np.uint8) for f in range(clips * clip_len)
    ]
    if tall:
        frames = [f.transpose(1, 0, 2) for f in frames]
    results = ViewCrops(size, 3)(dict(imgs=frames, num_clips=clips, clip_len=clip_len))
    assert results['num_clips'] == 6 and results['img_shape'] == (size, size)
    packed = upstream(type='FormatShape', input_format='NCTHW')(results)['imgs']
    assert packed.shape == (6, 3, clip_len, size, size)
    assert packed[:, 0, 0, 0, 0].tolist() == [0, 2, 5] * 2
    assert packed[:, 1, :, 0, 0].tolist() == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3


def test_small_frames_are_refused():
    with pytest.raises(ValueError, match='smaller than the crops of 224'):
        ViewCrops(224)(dict(imgs=[np.zeros((100, 300, 3), np.uint8)]))


# -- RandAugment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('magnitude, std', [(4, 0.2), (7, 0.5)])
def test_randaugment_equals_timm_on_every_frame(magnitude, std):
    timm = pytest.importorskip('timm.data.auto_augment')
    hparams = dict(img_mean=(128, 128, 128), interpolation=Image.BICUBIC)
    theirs = timm.rand_augment_transform(f'rand-m{magnitude}-n2-mstd{std}-inc1', hparams)
    ours = ClipRandAugment(num_ops=2, magnitude=magnitude, magnitude_std=std)
    frames = [np.random.default_rng(i).integers(0, 256, (36, 48, 3), dtype=np.uint8) for i in range(3)]
    changed = 0
    for seed in range(60):
        random.seed(seed), np.random.seed(seed)
        found = ours(dict(imgs=list(frames)))['imgs']
        for frame, ours_frame in zip(frames, found):
            random.seed(seed), np.random.seed(seed)
            np.testing.assert_array_equal(
                ours_frame, np.asarray(theirs(Image.fromarray(frame))), err_msg=f'seed {seed}')
        changed += not np.array_equal(found[0], frames[0])
    assert changed > 30


def test_all_operations_are_drawn_and_levels_follow_their_formulas():
    augment = ClipRandAugment(num_ops=2, magnitude=5, magnitude_std=0., prob=1.)
    drawn = dict(d for _ in range(400) for d in augment.draw())
    assert set(drawn) == set(LEVELS)
    assert drawn['PosterizeIncreasing'] == 2 and drawn['SolarizeIncreasing'] == 128 and drawn['SolarizeAdd'] == 55
    assert abs(drawn['Rotate']) == 15 and abs(drawn['ShearX']) == pytest.approx(.15)
    assert abs(drawn['ColorIncreasing'] - 1) == pytest.approx(.45) and drawn['Invert'] is None


def test_clips_stay_a_clip_in_the_training_pipelines():
    """RandAugment, random resized crop, flip and erasing: a clip of equal frames stays one, so motion is never
    invented."""
    import mmaction.datasets  # noqa: F401
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    pipeline = Compose([
        dict(type='mmpetl.ClipRandAugment', num_ops=2, magnitude=9, prob=1.),
        dict(type='mmaction.RandomResizedCrop'),
        dict(type='mmaction.Resize', scale=(32, 32), keep_ratio=False),
        dict(type='mmaction.Flip', flip_ratio=0.5),
        dict(type='mmaction.RandomErasing', erase_prob=1., fill_color=(0, 0, 0)),
    ])
    for _ in range(20):
        imgs = pipeline(
            dict(imgs=[frame.copy() for _ in range(4)], img_shape=frame.shape[:2], modality='RGB', label=0))['imgs']
        assert all(img.shape == (32, 32, 3) for img in imgs)
        assert all(np.array_equal(img, imgs[0]) for img in imgs)
