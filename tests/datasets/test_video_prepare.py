# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import sys

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from mmpetl.commands.main import main as cli
from mmpetl.commands.video_check import check_video_dataset
from mmpetl.datasets import video_prepare
from mmpetl.datasets.tables.video import VIDEO_SETS, VideoSet
from mmpetl.datasets.video_lists import read_video_list
from mmpetl.datasets.video_prepare import main


def small(monkeypatch, name, num_classes, splits):
    """Pretend that the data set was published in the size of the test's archive."""
    info = VIDEO_SETS[name]
    monkeypatch.setitem(VIDEO_SETS, name,
                        VideoSet(name, info.title, num_classes, splits, info.videos, info.lists, info.source))


def write_video(path, size=(48, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter_fourcc(*'MJPG' if path.suffix == '.avi' else 'mp4v'), 12, size[::-1])
    for i in range(5):
        writer.write(np.full((*size, 3), 40 * i, np.uint8))
    writer.release()


def make_hmdb51(root):
    for name in ('wave', 'brush_hair'):
        for i in range(4):
            write_video(root / f'hmdb51_org/{name}/{name} take_{i}.avi')
        for split in (1, 2, 3):
            flags = [1, 1, 2, 0] if split == 1 else [2, 1, 1, 0]
            path = root / f'testTrainMulti_7030_splits/{name}_test_split{split}.txt'
            path.parent.mkdir(exist_ok=True)
            path.write_text(''.join(f'{name} take_{i}.avi {flag} \n' for i, flag in enumerate(flags)))


def make_ucf101(root):
    lists = root / 'ucfTrainTestlist'
    lists.mkdir(parents=True)
    (lists / 'classInd.txt').write_text('1 ApplyEyeMakeup\n2 YoYo\n')
    for name in ('ApplyEyeMakeup', 'YoYo'):
        for i in (1, 2, 3):
            write_video(root / f'UCF-101/{name}/v_{name}_g0{i}_c01.avi')
    for split in (1, 2, 3):
        (lists / f'trainlist0{split}.txt').write_text(
            'ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1\r\nYoYo/v_YoYo_g01_c01.avi 2\r\n'
            'YoYo/v_YoYo_g02_c01.avi 2\r\n')
        (lists /
         f'testlist0{split}.txt').write_text('ApplyEyeMakeup/v_ApplyEyeMakeup_g03_c01.avi\nYoYo/v_YoYo_g03_c01.avi\n')


def make_ssv2(root):
    for i in (11, 12, 13):
        write_video(root / f'20bn-something-something-v2/{i}.mp4')
    (root / 'labels').mkdir()
    (root / 'labels/labels.json').write_text(json.dumps({'Holding something': '1', 'Closing something': '0'}))
    (root / 'labels/train.json').write_text(
        json.dumps([{
            'id': '11',
            'label': 'closing a box',
            'template': 'Closing [something]'
        }, {
            'id': '12',
            'label': 'holding a cup',
            'template': 'Holding [something]'
        }]))
    (root / 'labels/validation.json').write_text(
        json.dumps([{
            'id': '13',
            'label': 'x',
            'template': 'Holding [something]'
        }, {
            'id': '11',
            'label': 'x',
            'template': 'Closing [something]'
        }]))


def rows(path):
    return [(e.path, e.label) for e in read_video_list(str(path))]


def test_hmdb51(tmp_path, monkeypatch, capsys):
    make_hmdb51(tmp_path)
    small(monkeypatch, 'hmdb51', 2, {f'split{i}': (4, 2) for i in (1, 2, 3)})
    assert main('hmdb51', '', [str(tmp_path)]) == 0
    hair, wave = 'hmdb51_org/brush_hair/brush_hair take_', 'hmdb51_org/wave/wave take_'
    assert rows(tmp_path / 'split1/train.csv') == [(f'{hair}0.avi', 0), (f'{hair}1.avi', 0), (f'{wave}0.avi', 1),
                                                   (f'{wave}1.avi', 1)]
    assert rows(tmp_path / 'split3/test.csv') == rows(tmp_path / 'split3/val.csv') == [(f'{hair}0.avi', 0),
                                                                                       (f'{wave}0.avi', 1)]
    assert (tmp_path / 'classes.txt').read_text().split() == ['brush_hair', 'wave']
    assert f'2 classes, 6 videos in {tmp_path}/hmdb51_org' in capsys.readouterr().out


def test_ucf101_with_commas(tmp_path, monkeypatch):
    make_ucf101(tmp_path)
    small(monkeypatch, 'ucf101', 2, {f'split{i}': (3, 2) for i in (1, 2, 3)})
    assert main('ucf101', '', [str(tmp_path), '--delimiter', 'comma', '--out', str(tmp_path / 'lists')]) == 0
    # The videos do not lie below the lists, so their paths are absolute.
    assert (tmp_path /
            'lists/split2/train.csv').read_text().splitlines()[1] == f'{tmp_path}/UCF-101/YoYo/v_YoYo_g01_c01.avi,1'
    assert rows(tmp_path / 'lists/split2/test.csv') == [
        (f'{tmp_path}/UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g03_c01.avi', 0),
        (f'{tmp_path}/UCF-101/YoYo/v_YoYo_g03_c01.avi', 1)
    ]


def test_ssv2_leak_between_lists_is_found(tmp_path, monkeypatch, capsys):
    make_ssv2(tmp_path)
    small(monkeypatch, 'ssv2', 2, {'': (2, 2)})
    assert main('ssv2', '', [str(tmp_path)]) == 1
    assert '1 videos are in both lists, for example 11.mp4' in capsys.readouterr().out
    assert not (tmp_path / 'train.csv').exists()
    assert main('ssv2', '', [str(tmp_path), '--allow-partial']) == 1
    assert rows(tmp_path / 'train.csv') == [(f'20bn-something-something-v2/{i}.mp4', label)
                                            for i, label in ((11, 0), (12, 1))]


def test_counts_and_missing_videos_are_reported(tmp_path, capsys):
    make_hmdb51(tmp_path)
    shutil.rmtree(tmp_path / 'hmdb51_org/wave')
    assert main('hmdb51', '', [str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert '2 classes, published are 51' in out and 'split1 train: 4 videos, published are 3570' in out
    assert '3 of 6 listed videos are not in' in out and 'nothing was written' in out


def test_packed_archives_and_empty_folders_say_what_to_do(tmp_path, capsys):
    assert main('hmdb51', '', [str(tmp_path)]) == 1
    (tmp_path / 'hmdb51_org').mkdir()
    (tmp_path / 'hmdb51_org/wave.rar').touch()
    assert main('hmdb51', '', [str(tmp_path)]) == 1
    first, second = capsys.readouterr().err.strip().splitlines()
    assert first.startswith(
        'error: no videos below') and 'holds .rar archives and no videos: unpack each of them' in second


def test_published_sizes():
    assert [s.num_classes for s in VIDEO_SETS.values()] == [51, 101, 174, 400]
    assert all(sum(counts) == 13320 for counts in VIDEO_SETS['ucf101'].splits.values())
    assert set(VIDEO_SETS['hmdb51'].splits.values()) == {(70 * 51, 30 * 51)}


FFMPEG = '''#!{python}
"""Stands in for ffmpeg: copies its input, and fails for names with 'broken' after writing half of it."""
import sys
source, target = sys.argv[sys.argv.index('-i') + 1], sys.argv[-1]
data = open(source, 'rb').read()
broken = 'take_0' in source and 'wave' in source
open(target, 'wb').write(data[:len(data) // 2] if broken else data)
sys.exit('moov atom not found' if broken else 0)
'''


def test_reencoding_is_atomic_and_can_go_on(tmp_path, monkeypatch, capsys):
    make_hmdb51(tmp_path)
    small(monkeypatch, 'hmdb51', 2, {f'split{i}': (4, 2) for i in (1, 2, 3)})
    program = tmp_path / 'bin/ffmpeg'
    program.parent.mkdir()
    program.write_text(FFMPEG.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(program.parent))
    assert main('hmdb51', '', [str(tmp_path), '--short-side', '256', '--workers', '2']) == 1
    assert 'wave take_0.avi cannot be re-encoded: moov atom not found' in capsys.readouterr().out
    encoded = sorted(
        p.relative_to(tmp_path / 'videos_256') for p in (tmp_path / 'videos_256').rglob('*') if p.is_file())
    wanted = [f'brush_hair/brush_hair take_{i}.mp4' for i in (0, 1, 2)] + [f'wave/wave take_{i}.mp4' for i in (1, 2)]
    assert [str(p) for p in encoded] == wanted
    assert rows(tmp_path / 'split1/test.csv') == [('videos_256/brush_hair/brush_hair take_2.mp4', 0),
                                                  ('videos_256/wave/wave take_2.mp4', 1)]
    calls = []
    monkeypatch.setattr(video_prepare, 'encode', lambda source, *args: calls.append(source.name) or '')
    main('hmdb51', '', [str(tmp_path), '--short-side', '256'])
    assert calls == ['wave take_0.avi'], 'only what is missing is encoded again'


def test_without_ffmpeg(tmp_path, monkeypatch, capsys):
    make_hmdb51(tmp_path)
    small(monkeypatch, 'hmdb51', 2, {f'split{i}': (4, 2) for i in (1, 2, 3)})
    monkeypatch.setenv('PATH', '')
    assert main('hmdb51', '', [str(tmp_path), '--short-side', '256']) == 1
    assert 'ffmpeg is not installed' in capsys.readouterr().err


@pytest.mark.parametrize('size, side, expected', [((49, 65), 32, (32, 42)), ((65, 49), 32, (42, 32)),
                                                  ((49, 65), 256, (48, 64)), ((96, 96), 32, (32, 32))])
def test_ffmpeg_shrinks_to_even_sides(tmp_path, size, side, expected):
    ffmpeg = shutil.which('ffmpeg') or imageio_ffmpeg.get_ffmpeg_exe()
    write_video(tmp_path / 'a.avi', size)
    assert video_prepare.encode(tmp_path / 'a.avi', tmp_path / 'new/a.mp4', side, ffmpeg) == ''
    found, frame = cv2.VideoCapture(str(tmp_path / 'new/a.mp4')).read()
    # Writers of odd sizes round down first, so one pixel is allowed.
    assert found and all(abs(a - b) <= 2 and a % 2 == 0 for a, b in zip(frame.shape, expected)), frame.shape


def test_data_check(tmp_path, monkeypatch, capsys):
    make_hmdb51(tmp_path)
    small(monkeypatch, 'hmdb51', 2, {f'split{i}': (4, 2) for i in (1, 2, 3)})
    with pytest.raises(FileNotFoundError, match='split1/train.csv does not exist: run python tools/prepare_hmdb51.py'):
        check_video_dataset('hmdb51', tmp_path)
    assert main('hmdb51', '', [str(tmp_path)]) == 0
    report = check_video_dataset('hmdb51', tmp_path)
    assert report.passed and report.videos == 6 and report.frames == 30 and report.shortest == 5
    (tmp_path / 'hmdb51_org/wave/wave take_1.avi').write_bytes(b'')
    (tmp_path / 'hmdb51_org/wave/wave take_2.avi').write_text('no video')
    capsys.readouterr()
    assert cli(['data', 'check', 'hmdb51', '--root', str(tmp_path), '--json', str(tmp_path / 'r.json')]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith('wave take_1.avi: the file is empty')
    assert lines[1].endswith('wave take_2.avi: pyav cannot open it: it is no video, or cut off before its index')
    assert lines[2].endswith('0 problems, 2 unreadable videos')
    assert json.loads((tmp_path / 'r.json').read_text())['passed'] is False
    assert cli(['data', 'check', 'hmdb51', '--root', str(tmp_path), '--no-decode']) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith('0 problems, 1 unreadable videos')
    with pytest.raises(ValueError, match="unknown video data set 'hmdb'"):
        check_video_dataset('hmdb')


def test_k400_lists_the_videos_that_are_there(tmp_path, monkeypatch, capsys):
    """Withdrawn videos are left out and counted; names carry the seconds; labels are alphabetical."""
    (tmp_path / 'annotations').mkdir()
    for name, lines in (('train', ['"zumba",aa,5,15', '"abseiling",b-b,10,20', '"zumba",gone,0,10']),
                        ('val', ['"abseiling",cc,1,11', '"zumba",dd,2,12'])):
        (tmp_path / f'annotations/{name}.csv').write_text('\n'.join(
            ['label,youtube_id,time_start,time_end,split', *(f'{row},{name}' for row in lines)]))
    for video in ('train/aa_000005_000015', 'train/abseiling/b-b_000010_000020', 'val/cc_000001_000011',
                  'val/dd_000002_000012'):
        write_video(tmp_path / f'{video}.mp4')
    small(monkeypatch, 'k400', 2, {'': (0, 0)})
    assert main('k400', '', [str(tmp_path)]) == 0
    assert rows(tmp_path / 'train.csv') == [('train/aa_000005_000015.mp4', 1), ('train/abseiling/b-b_000010_000020.mp4', 0)]
    assert rows(tmp_path / 'test.csv') == [('val/cc_000001_000011.mp4', 0), ('val/dd_000002_000012.mp4', 1)]
    assert 'train: 2 of 3 listed videos are there' in capsys.readouterr().out
    (tmp_path / 'annotations/val.csv').write_text('a,b\n1,2\n')
    assert main('k400', '', [str(tmp_path)]) == 1
    assert 'expected the columns label' in capsys.readouterr().err

