# SPDX-License-Identifier: Apache-2.0
import logging
import subprocess
import sys
import time
import wave

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner

import mmpetl  # noqa: F401
from mmpetl.datasets.video import VideoListDataset
from mmpetl.datasets.video_files.errors import VideoError
from mmpetl.datasets.video_files.opening import MODULES
from mmpetl.datasets.video_io import VideoDecode, VideoInit, choose_decoder
from mmpetl.datasets.video_lists import read_video_list, write_video_list
from mmpetl.datasets.video_probe import check_videos, probe


@pytest.fixture(autouse=True)
def findings(tmp_path, monkeypatch):
    """What is found out about the files of a test is kept in a folder of its own."""
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path / 'cache'))


def write_video(path, frames=20, size=(48, 64)):
    """A video whose frame i is grey of value 10 i."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 12, size[::-1])
    for i in range(frames):
        writer.write(np.full((*size, 3), 10 * i % 250, np.uint8))
    writer.release()
    return str(path)


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """Eight good videos of four classes, and one bad file of every kind."""
    root = tmp_path_factory.mktemp('videos')
    for i in range(8):
        write_video(root / f'good {i}.mp4', 12 + i)
    write_video(root / 'one.mp4', 1)
    write_video(root / 'odd.mp4', size=(49, 65))
    (root / 'zero.mp4').touch()
    (root / 'truncated.mp4').write_bytes((root / 'good 0.mp4').read_bytes()[:700])
    (root / 'text.mp4').write_text('not a video\n' * 50)
    with wave.open(str(root / 'audio.mp4'), 'wb') as audio:
        audio.setnchannels(1), audio.setsampwidth(2), audio.setframerate(8000)
        audio.writeframes(bytes(8000))
    write_video_list(str(root / 'good.csv'), [(f'good {i}.mp4', i % 4) for i in range(8)])
    write_video_list(
        str(root / 'bad.csv'), [('good 0.mp4', 0), ('zero.mp4', 1), ('truncated.mp4', 2), ('good 1.mp4', 1),
                                ('audio.mp4', 3), ('renamed.mp4', 0), ('text.mp4', 0)])
    return root


def pipeline(num_clips=1, test_mode=False, **init):
    return [
        dict(type='mmpetl.VideoInit', **init),
        dict(
            type='mmpetl.VideoMAESampleFrames', clip_len=4, frame_interval=2, num_clips=num_clips, test_mode=test_mode),
        dict(type='mmpetl.VideoDecode'),
        dict(type='Resize', scale=(16, 16), keep_ratio=False),
        dict(type='Flip', flip_ratio=0.5),
        dict(type='FormatShape', input_format='NCTHW'),
        dict(type='PackActionInputs', meta_keys=('filename', 'frame_inds')),
    ]


def build(root, name='good.csv', **kwargs):
    init_default_scope('mmaction')
    kwargs.setdefault('pipeline', pipeline())
    kwargs.setdefault('check', 'exists')
    return DATASETS.build(
        dict(type='mmpetl.VideoListDataset', ann_file=str(root / name), data_prefix=dict(video=str(root)), **kwargs))


@pytest.fixture
def log():
    """What is logged through mmengine's current logger."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


# -- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('text, expected', [
    ('a/b.mp4 3\n', [('a/b.mp4', 3)]),
    ('a/b.mp4,3\r\n', [('a/b.mp4', 3)]),
    ('my video, take 2.mp4 3\n\n  x.mp4\t0 \n', [('my video, take 2.mp4', 3), ('x.mp4', 0)]),
    ('\ufeff/abs/a.mp4 , 7', [('/abs/a.mp4', 7)]),
])
def test_lists_of_both_papers(tmp_path, text, expected):
    path = tmp_path / 'train.csv'
    path.write_bytes(text.encode())
    assert [(e.path, e.label) for e in read_video_list(str(path))] == expected


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be'])
@pytest.mark.parametrize('between', [' ', ',', '\t', ';', ' , ', '   '])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_forms_of_lists(tmp_path, encoding, between, end):
    rows = [('a/b c.mp4', 3), ('take 2, last.mp4', 0), ('plain', 1)]
    path = tmp_path / 'train.csv'
    path.write_bytes(end.join(f'{name}{between}{label}' for name, label in rows).encode(encoding))
    assert [(e.path, e.label) for e in read_video_list(str(path), 4)] == rows
    quoted = ''.join(f'"{name}",{label}{end}' for name, label in rows)
    for text in (quoted, f'path,label{end}{quoted}', f'video,class_id,split{end}' + quoted.replace(end, f',x{end}')):
        path.write_bytes(text.encode(encoding))
        assert [(e.path, e.label) for e in read_video_list(str(path), 4)] == rows


@pytest.mark.parametrize('text, message', [
    ('a.mp4 0\nb.mp4\n', r"train.csv, line 2: no label in 'b.mp4'; expected 'path label'"),
    ('path,label\n', r'train.csv lists no video'),
    ('a.mp4 0\nb.mp4 4\n', r"train.csv, line 2: label 4 of 'b.mp4' is not one of the classes 0..3"),
    ('a.mp4 -1\n', r'train.csv, line 1: label -1 is not a class id'),
    ('a.mp4 1.5\n', r"train.csv, line 1: label '1.5' is not a whole number"),
    ('\n\n', 'train.csv lists no video'),
    ('a.mp4 0\nb.mp4 1 2\n', "train.csv, line 2: 2 labels in 'b.mp4 1 2', but a video has one"),
    ('a.mp4,0\nb.mp4,1,2\n', r'train.csv, line 2: 2 labels \(1,2\) .*but a video has one'),
    ('frames/a 120 3\n', r"train.csv, line 1: 'frames/a 120 3' is a row of extracted frames .*RawframeDataset"),
])
def test_wrong_lines_are_named(tmp_path, text, message):
    path = tmp_path / 'train.csv'
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_video_list(str(path), num_classes=4)
    assert '\n' not in str(caught.value)


def test_missing_list_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv: no such list; 'mmpetl fetch'"):
        read_video_list(str(tmp_path / 'nowhere.csv'))


@pytest.mark.parametrize('delimiter', [' ', ','])
def test_written_lists_are_read(tmp_path, delimiter):
    rows = [('a b/c.mp4', 0), ('d,e.mp4', 12)]
    write_video_list(str(tmp_path / 'new/list.csv'), rows, delimiter)
    for asked in ('auto', delimiter):
        assert [(e.path, e.label) for e in read_video_list(str(tmp_path / 'new/list.csv'), 13, asked)] == rows


# -- decoders ---------------------------------------------------------------------------------------------------------


def decode(path, wanted, decoder):
    results = VideoInit(decoder)(dict(filename=str(path)))
    return VideoDecode()(dict(results, frame_inds=np.array(wanted)))


@pytest.mark.parametrize('decoder', list(MODULES))
@pytest.mark.parametrize('name, frames', [('good 7.mp4', 19), ('one.mp4', 1), ('odd.mp4', 20)])
def test_decoders_agree_on_frames(videos, decoder, name, frames):
    wanted = [0, frames - 1, 0, frames // 2]
    results = decode(videos / name, wanted, decoder)
    assert results['total_frames'] == frames
    assert [round(float(i.mean()) / 10) for i in results['imgs']] == wanted
    # Planes of the codec have even sizes, so OpenCV's writer crops odd frames.
    assert results['img_shape'] == results['imgs'][0].shape[:2] == (48, 64)
    results['imgs'][0][:] = 255
    assert results['imgs'][2].mean() < 255, 'a repeated frame is a copy'


def test_every_frame_is_decoded_once(videos, monkeypatch):
    results = VideoInit()(dict(filename=str(videos / 'good 7.mp4')))
    reader, asked = results['video_reader'], []
    read = reader.read
    monkeypatch.setattr(reader, 'read', lambda indices, finish: asked.extend(indices) or read(indices, finish))
    frames = VideoDecode()(dict(results, frame_inds=np.array([3, 3, 1, 1, 3])))['imgs']
    assert asked == [1, 3] and len(frames) == 5 and reader.decoded == 4


def test_decoder_is_chosen(monkeypatch, log):
    assert choose_decoder('auto') == 'pyav'
    with pytest.raises(ValueError, match="unknown decoder 'decrod'; did you mean 'decord'"):
        VideoInit('decrod')
    real = __import__('importlib').util.find_spec
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None if name == 'av' else real(name))
    assert choose_decoder('auto') == 'opencv'
    VideoInit()
    assert 'PyAV is not installed: opencv reads videos from their first frame on' in log[-1]
    with pytest.raises(ValueError, match="decoder 'pyav' is not installed: pip install av"):
        choose_decoder('pyav')
    with pytest.raises(ValueError, match="io_backend='petrel' needs PyAV, got decoder='opencv'"):
        VideoInit('opencv', io_backend='petrel')


@pytest.mark.parametrize('decoder', list(MODULES))
@pytest.mark.parametrize('name', ['zero.mp4', 'truncated.mp4', 'text.mp4', 'audio.mp4', 'renamed.mp4'])
def test_bad_files_are_named_in_one_line(videos, decoder, name):
    with pytest.raises(VideoError, match=name) as caught:
        VideoInit(decoder)(dict(filename=str(videos / name)))
    assert '\n' not in str(caught.value)


def test_an_avi_cut_off(tmp_path):
    """decord crashes (the whole process) when it reads such a file from memory; by its name it gives the frames that
    are there."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(tmp_path / 'whole.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 12, (64, 48))
    for _ in range(40):
        writer.write(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    writer.release()
    data = (tmp_path / 'whole.avi').read_bytes()
    (tmp_path / 'cut.avi').write_bytes(data[:len(data) // 2])
    script = (
        'import sys, mmpetl\nfrom mmpetl.datasets.video_io import VideoDecode, VideoInit\n'
        'opened = VideoInit().transform(dict(filename=sys.argv[1]))\n'
        'opened["frame_inds"] = [0, opened["total_frames"] // 2]\nprint(len(VideoDecode().transform(opened)["imgs"]))')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', script,
                           str(tmp_path / 'cut.avi')],
                          capture_output=True,
                          text=True)
    assert done.returncode == 0 and done.stdout.split()[-1] == '2'
    cut, whole = (probe(str(tmp_path / f'{name}.avi'), 'open', 'auto') for name in ('cut', 'whole'))
    assert cut.reason == f'it is cut off: {len(data) // 2:,} of {len(data):,} bytes are there' and not whole.reason


def test_a_picture_is_no_video(tmp_path):
    cv2.imwrite(str(tmp_path / 'picture.png'), np.zeros((48, 64, 3), np.uint8))
    (tmp_path / 'picture.png').rename(tmp_path / 'picture.mp4')
    assert probe(str(tmp_path / 'picture.mp4'), 'open', 'auto').reason == 'it is a picture (png), not a video'


# -- checking ---------------------------------------------------------------------------------------------------------


def test_check_names_every_bad_video(videos):
    names = ['good 0.mp4', 'zero.mp4', 'truncated.mp4', 'text.mp4', 'audio.mp4', 'renamed.mp4', 'one.mp4', 'odd.mp4']
    found = {p.path.rsplit('/', 1)[1]: p for p in check_videos([str(videos / n) for n in names], 'decode', workers=1)}
    assert list(found) == names
    assert {n for n, p in found.items() if not p.reason} == {'good 0.mp4', 'one.mp4', 'odd.mp4'}, found
    assert found['zero.mp4'].reason == 'the file is empty' and found['renamed.mp4'].reason == 'no such file'
    assert 'no video stream' in found['audio.mp4'].reason
    assert found['good 0.mp4'].frames == 12 and found['good 0.mp4'].size == (48, 64)
    cheap = check_videos([str(videos / n) for n in names], 'exists')
    assert [bool(p.reason) for p in cheap] == [False, True, False, False, False, True, False, False]


FAKE = """
import os, time
import numpy as np
__version__, CAP_PROP_FPS = '0', 0
class VideoCapture:
    def __init__(self, file):
        self.content = open(file, 'rb').read()
        if self.content == b'hang':
            time.sleep(60)
        if self.content == b'crash':
            os.abort()
    def isOpened(self):
        return True
    def get(self, name):
        return 1.
    def grab(self):
        found, self.content = bool(self.content), b''
        return found
    def retrieve(self):
        return True, np.zeros((4, 6, 3), np.uint8)
    def release(self):
        pass
"""


def test_hanging_and_crashing_decoders_do_not_stop_the_check(tmp_path, monkeypatch):
    (tmp_path / 'cv2.py').write_text(FAKE)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    for name in ('hang', 'crash', 'good', 'fine'):
        (tmp_path / f'{name}.mp4').write_text(name)
    start = time.monotonic()
    seen = []
    found = check_videos([str(tmp_path / f'{n}.mp4') for n in ('hang', 'good', 'crash', 'fine')],
                         'open',
                         'opencv',
                         timeout=3.,
                         workers=1,
                         progress=seen.append)
    assert [p.reason for p in found] == ['it is not decoded within 3 s', '', 'the decoder crashed', '']
    assert found == seen and found[1].size == (4, 6)
    assert time.monotonic() - start < 50


def test_unknown_level_is_refused():
    with pytest.raises(ValueError, match="unknown level of checking 'decoded'; did you mean 'decode'"):
        check_videos(['a.mp4'], 'decoded')


@pytest.mark.parametrize('decoder', list(MODULES))
def test_all_decoders_check(videos, decoder):
    names = ['good 0.mp4', 'one.mp4', 'truncated.mp4', 'audio.mp4']
    found = [probe(str(videos / name), 'decode', decoder) for name in names]
    assert [p.frames for p in found[:2]] == [12, 1] and [p.size for p in found[:2]] == [(48, 64)] * 2
    assert [bool(p.reason) for p in found] == [False, False, True, True]


# -- the data set -----------------------------------------------------------------------------------------------------


def test_items(videos):
    data = build(videos, num_classes=4)
    assert isinstance(data, VideoListDataset) and len(data) == 8
    item = data[5]
    assert item['inputs'].shape == (1, 3, 4, 16, 16) and item['inputs'].dtype == torch.uint8
    assert item['data_samples'].gt_label.tolist() == [1]
    with pytest.raises(ValueError, match="label 3 of 'good 3.mp4' is not one of the classes 0..2"):
        build(videos, num_classes=3)


def test_home_folder_is_expanded(videos, monkeypatch):
    monkeypatch.setenv('HOME', str(videos.parent))
    init_default_scope('mmaction')
    data = DATASETS.build(dict(type='mmpetl.VideoListDataset', data_root=f'~/{videos.name}', ann_file='good.csv'))
    assert data.get_data_info(0)['filename'] == str(videos / 'good 0.mp4')


def test_all_views_of_a_video(videos):
    data = build(
        videos,
        pipeline=[
            *pipeline(3, True)[:3],
            dict(type='mmpetl.ShortSideResize', size=16),
            dict(type='mmpetl.ViewCrops', crop_size=16, num_crops=3), *pipeline()[5:]
        ],
        test_mode=True)
    item = data[7]
    assert item['inputs'].shape == (9, 3, 4, 16, 16)
    # The frames of good 7 are grey of value 10 i: views are clip by clip, three crops of each.
    starts = (item['inputs'][:, 0, 0, 0, 0].float() / 10).round().tolist()
    assert starts == [0] * 3 + [6] * 3 + [12] * 3


@pytest.fixture
def check_here(monkeypatch):
    """Check without starting processes, which takes seconds."""
    monkeypatch.setattr('mmpetl.datasets.video.check_videos',
                        lambda paths, level, *_, **__: [probe(p, level, 'auto') for p in paths])


@pytest.mark.usefixtures('check_here')
def test_stop_names_all_unreadable_videos(videos):
    with pytest.raises(VideoError) as caught:
        build(videos, 'bad.csv', check='open')
    message = str(caught.value)
    assert '5 of 7 videos cannot be read' in message and '\n' not in message
    assert all(name in message for name in ('zero.mp4', 'truncated.mp4', 'audio.mp4', 'renamed.mp4', 'text.mp4'))
    with pytest.raises(VideoError, match='2 of 7 videos'):
        build(videos, 'bad.csv')
    with pytest.raises(VideoError, match='is data_prefix='):
        DATASETS.build(
            dict(type='mmpetl.VideoListDataset', ann_file=str(videos / 'good.csv'), data_prefix=dict(video='/nowhere')))


@pytest.mark.usefixtures('check_here')
def test_skip_leaves_them_out_and_counts_them(videos, log):
    data = build(videos, 'bad.csv', check='open', on_error='skip')
    assert len(data) == 2
    text = '\n'.join(log)
    assert text.count(
        'unreadable video left out') == 5 and '5 of 7 videos cannot be read; training uses the other 2' in text


@pytest.mark.parametrize('workers', [0, 2])
def test_a_video_that_fails_later_is_replaced_in_training(videos, workers, log):
    data = build(videos, 'bad.csv', check='none', on_error='skip')
    loader = torch.utils.data.DataLoader(data, batch_size=7, num_workers=workers, collate_fn=pseudo_collate)
    batch, = list(loader)
    assert len(batch['inputs']) == 7
    assert {s.filename.rsplit('/', 1)[1] for s in batch['data_samples']} <= {'good 0.mp4', 'good 1.mp4'}
    assert data.skipped >= 5
    if not workers:
        assert 'unreadable video skipped (1 so far)' in '\n'.join(log)


def test_a_video_that_fails_later_stops_a_test_run(videos):
    data = build(videos, 'bad.csv', pipeline=pipeline(2, True), check='none', on_error='skip', test_mode=True)
    with pytest.raises(VideoError, match='zero.mp4'):
        data[1]


def test_unknown_options_are_refused(videos):
    with pytest.raises(ValueError, match='multi_class=True, but a line of its lists has one label'):
        build(videos, multi_class=True)
    with pytest.raises(ValueError, match="unknown on_error 'skipp'; did you mean 'skip'"):
        build(videos, on_error='skipp')
    with pytest.raises(ValueError, match="unknown check 'opens'"):
        build(videos, check='opens')
    with pytest.raises(ValueError, match='testing has not'):
        build(videos, num_repeats=2, test_mode=True)


def test_repeated_augmentation_decodes_once(videos, monkeypatch):
    data = build(videos, num_repeats=3)
    calls = []
    decode_once = VideoDecode.transform
    monkeypatch.setattr(VideoDecode, 'transform',
                        lambda self, results: calls.append(results['filename']) or decode_once(self, results))
    torch.manual_seed(0), np.random.seed(1)
    copies = data[7]
    assert len(copies) == 3 and len(calls) == 1
    indices = [c['data_samples'].frame_inds.tolist() for c in copies]
    assert indices == [indices[0]] * 3, 'the copies share one sampled clip'


@pytest.mark.parametrize('repeats', [1, 2])
def test_repeated_augmentation_in_a_loader(videos, repeats):
    data_cfg = dict(
        type='mmpetl.VideoListDataset',
        ann_file=str(videos / 'good.csv'),
        data_prefix=dict(video=str(videos)),
        pipeline=pipeline(),
        num_repeats=repeats)
    init_default_scope('mmaction')
    loader = Runner.build_dataloader(
        dict(
            dataset=data_cfg,
            batch_size=4,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='repeat_pseudo_collate')))
    batches = list(loader)
    assert isinstance(loader.sampler, DefaultSampler) and len(batches) == 2
    assert len(batches[0]['inputs']) == 4 * repeats
    labels = [int(s.gt_label) for s in batches[0]['data_samples']]
    assert labels == [label for label in range(4) for _ in range(repeats)]


def peak(key='VmHWM'):
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))


@pytest.mark.skipif(sys.platform != 'linux', reason='reads the peak of memory from /proc')
def test_a_short_film_of_4k_in_a_test_recipe(tmp_path):
    """Ten clips of 16 frames ask for 160 frames of 25 MB; each is resized as it is decoded."""
    import os

    from mmengine.config import Config
    path = tmp_path / 'uhd.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 24, (3840, 2160))
    for i in range(24):
        writer.write(np.full((2160, 3840, 3), 10 * i, np.uint8))
    writer.release()
    (tmp_path / 'test.csv').write_text('uhd.avi 0\n')
    config = Config.fromfile(os.path.join(os.path.dirname(__file__), '../../configs/_base_/datasets/hmdb51_16x4.py'))
    data = build(tmp_path, 'test.csv', pipeline=config.test_pipeline, test_mode=True)
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')
    before = peak('VmRSS')
    item = data[0]
    used = peak() - before
    assert item['inputs'].shape[1:] == (3, 16, 224, 224)
    assert used < 500 << 20, f'{used >> 20} MB'


def test_all_broken_videos_are_named(tmp_path, monkeypatch):
    """More than fit into one line: each has a line of its own before the error."""
    for i in range(23):
        (tmp_path / f'{i}.mp4').write_bytes(b'no video')
    (tmp_path / 'list.csv').write_text(''.join(f'{i}.mp4 0\n' for i in range(23)))
    from mmpetl.datasets import video
    lines = []
    monkeypatch.setattr(video, 'print_log', lambda text, *_: lines.append(text))
    with pytest.raises(VideoError, match='23 of 23 videos .* and 3 more, all named above'):
        VideoListDataset(ann_file=str(tmp_path / 'list.csv'), data_prefix=dict(video=str(tmp_path)), pipeline=[])
    assert all(any(f'{i}.mp4' in line for line in lines) for i in range(23))


def test_class_folders_and_names_as_for_pictures(tmp_path, log):
    """docs/own_data.md holds for videos: class folders, names as labels, labels from 1, paths without labels."""
    for name in ('train/run/a.mp4', 'train/run/deep/b.avi', 'train/walk/c.mp4', 'val/sit/d.mp4', 'train/walk/note.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'x')
    init_default_scope('mmaction')

    def read(**kwargs):
        found = DATASETS.build(dict(type='mmpetl.VideoListDataset', data_root=str(tmp_path), check='exists', **kwargs))
        infos = [found.get_data_info(i) for i in range(len(found))]
        return found, [(str(i['filename']).split('/', len(tmp_path.parts))[-1], i.get('label')) for i in infos]

    folders, rows = read(data_prefix='train')
    assert folders.metainfo['classes'] == ('run', 'sit', 'walk') and any('no video of 1 of 3 classes: sit' in line for line in log)
    assert rows == [('train/run/a.mp4', 0), ('train/run/deep/b.avi', 0), ('train/walk/c.mp4', 2)]
    assert read(data_prefix='val', classes='train', num_classes=None, with_label=False)[1] == [('val/sit/d.mp4', None)]
    (tmp_path / 'names.txt').write_text('run\nwalk\n')
    (tmp_path / 'list.csv').write_text('path,label\ntrain/run/a.mp4,run\ntrain/walk/c.mp4,walk\n')
    (tmp_path / 'ones.txt').write_text('train/run/a.mp4 1\ntrain/walk/c.mp4 2\n')
    (tmp_path / 'paths.txt').write_text('train/run/a.mp4\ntrain/walk/c.mp4\n')
    for given in (dict(ann_file='list.csv', classes='names.txt'), dict(ann_file='ones.txt', first_label=1, num_classes=2),
                  dict(ann_file='list.csv', metainfo=dict(classes=['run', 'walk'])),
                  dict(ann_file='list.csv', classes=['run', 'walk'])):
        assert read(**given)[1] == [('train/run/a.mp4', 0), ('train/walk/c.mp4', 1)]
    assert read(ann_file='paths.txt', with_label=False)[1] == [('train/run/a.mp4', None), ('train/walk/c.mp4', None)]
    for given, said in [
        (dict(data_prefix='train', num_classes=2), r'train has 3 classes, and num_classes=2: set it to 3, here and in'),
        (dict(ann_file='list.csv', classes=['walk', 'sit']), r"list.csv, line 2: label 'run' is neither a class id nor"),
        (dict(first_label=2), 'first_label=2 is neither 0 nor 1'),
        (dict(data_prefix='train', classes=['run']), r'the folder .*train/walk is none of the 1 classes'),
    ]:
        with pytest.raises(ValueError, match=said):
            read(**given)
    with pytest.raises(ValueError, match='set ann_file to a list, or data_root to a folder of class folders'):
        VideoListDataset()
