# SPDX-License-Identifier: Apache-2.0
"""The frame with the asked number, upright, from every container and codec, by every decoder."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mmpetl  # noqa: F401
from mmpetl.datasets.video_files.cache import Findings
from mmpetl.datasets.video_files.errors import VideoError
from mmpetl.datasets.video_files.opening import open_video
from mmpetl.datasets.video_files.probing import probe
from mmpetl.datasets.video_files.pyav_reader import Index, PyAVReader
from mmpetl.datasets.video_io import VideoDecode, VideoInit

sys.path.insert(0, str(Path(__file__).parent))
import numbered  # noqa: E402

DECODERS = ('auto', 'pyav', 'decord', 'opencv')
#: decord's codec libraries know neither of these
NOT_DECORD = {'av1.mp4': 'av1', 'animated.gif': 'gif'}


@pytest.fixture(scope='module')
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp('numbered')
    subprocess.run([sys.executable, numbered.__file__, str(folder)], check=True, stderr=subprocess.DEVNULL)
    return folder


@pytest.fixture(autouse=True)
def findings(tmp_path, monkeypatch):
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path / 'cache'))
    return Findings()


def clips(count=numbered.COUNT):
    """Frame numbers as the samplers draw them: strided, dense, spread over the whole film, single frames; twice, as the
    second reading of a film is another one."""
    starts = np.random.RandomState(0).randint(count - 16, size=4)
    return 2 * [*(start + 2 * np.arange(8) for start in starts), np.linspace(0, count - 1, 16).astype(int),
                np.arange(count - 9, count), np.array([count - 1]), np.array([count // 2])]


def frames_of(path, wanted, decoder='auto'):
    opened = VideoInit(decoder)(dict(filename=str(path)))
    return VideoDecode()(dict(opened, frame_inds=np.asarray(wanted))), opened


def test_there_are_enough_forms():
    assert len(numbered.FORMS) >= 45


@pytest.mark.parametrize('name', numbered.FORMS)
@pytest.mark.parametrize('decoder', ['pyav', 'decord', 'opencv'])
def test_the_frame_that_was_asked_for(films, name, decoder):
    if decoder == 'decord' and name in NOT_DECORD:
        with pytest.raises(VideoError, match=f"{name}: decord cannot decode its codec, {NOT_DECORD[name]}: write "
                           "decoder='auto', or encode it as H.264"):
            frames_of(films / name, [0], decoder)
        return
    init, decode = VideoInit(decoder), VideoDecode()
    for wanted in clips():
        opened = init(dict(filename=str(films / name)))
        assert opened['total_frames'] == numbered.COUNT
        got = [numbered.number(frame) for frame in decode(dict(opened, frame_inds=wanted))['imgs']]
        assert got == wanted.tolist()


@pytest.mark.parametrize('name', ['xvid_g12_b2.avi', 'mpeg2.ts', 'mpeg2.mp4'])
def test_why_decords_own_search_is_not_used(films, name):
    import decord
    wanted = list(range(20, 56, 4))
    found = decord.VideoReader(str(films / name), num_threads=1).get_batch(wanted).asnumpy()
    assert [numbered.number(frame) for frame in found] != wanted


@pytest.mark.parametrize('name', numbered.ROTATIONS)
@pytest.mark.parametrize('decoder', DECODERS)
def test_upright(films, name, decoder):
    results, _ = frames_of(films / name, [0, 7, 50], decoder)
    assert [numbered.number(frame) for frame in results['imgs']] == [0, 7, 50]
    assert results['img_shape'] == (numbered.HEIGHT, numbered.WIDTH)


@pytest.mark.parametrize('first', numbered.CUTS)
@pytest.mark.parametrize('decoder', DECODERS)
def test_films_cut_by_stream_copy_begin_at_the_cut(films, first, decoder):
    """An edit list hides what was cut off."""
    _, opened = frames_of(films / numbered.CUTS[first], [0], decoder)
    total = opened['total_frames']
    assert total in (numbered.COUNT - first, numbered.COUNT - first + 1)  # times are rounded to thousandths
    results, _ = frames_of(films / numbered.CUTS[first], range(total), decoder)
    assert [numbered.number(f) for f in results['imgs']] == list(range(numbered.COUNT - total, numbered.COUNT))


@pytest.mark.parametrize('name', ['cover_first.mkv', 'attached_first.mp4', *numbered.ODD_NAMES])
@pytest.mark.parametrize('decoder', DECODERS)
def test_cover_pictures_and_odd_names(films, name, decoder):
    results, opened = frames_of(films / name, [0, 30, 59], decoder)
    assert [numbered.number(frame) for frame in results['imgs']] == [0, 30, 59]
    assert opened['total_frames'] == numbered.COUNT
    assert not probe(str(films / name), 'open', decoder).reason


@pytest.mark.parametrize('decoder', DECODERS)
def test_what_is_no_film_is_said(films, decoder):
    with pytest.raises(VideoError, match='sound_and_cover.mp4: it has no video stream, only a cover picture'):
        frames_of(films / 'sound_and_cover.mp4', [0], decoder)
    with pytest.raises(VideoError, match='unknown_codec.mp4: .*codec, xyz1.*encode it as H.264'):
        frames_of(films / 'unknown_codec.mp4', [0], decoder)


def test_a_play_list_opens_no_other_file(films, tmp_path):
    path = tmp_path / 'list.mp4'
    path.write_text('#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://localhost:9/a.ts\n#EXT-X-ENDLIST\n')
    with pytest.raises(VideoError, match='list.mp4'):
        frames_of(path, [0])


def test_auto_takes_the_next_decoder(films, monkeypatch):
    """Where PyAV knows no decoder for a codec, OpenCV reads the film in order."""
    monkeypatch.setattr(PyAVReader, '_open', lambda self: (_ for _ in ()).throw(OSError('no decoder')))
    results, opened = frames_of(films / 'h264_g12_b2.mp4', [3, 40])
    assert opened['decoder'] == 'opencv' and [numbered.number(f) for f in results['imgs']] == [3, 40]


# -- the price --------------------------------------------------------------------------------------------------------


def price(path, wanted, findings, decoder='auto'):
    reader = open_video(str(path), decoder, findings=findings)
    assert [numbered.number(f) for f in reader.read(list(wanted))] == list(wanted)
    return reader.decoded


def test_the_price_of_a_clip(films, findings, tmp_path):
    """Reading in order first; the second clip that would gain from a jump proves jumps (the film twice); then a jump to
    the last key frame, in every process that shares the findings."""
    clip, jumping = range(40, 56, 2), films / 'h264_g12_b2.mp4'
    keys = PyAVReader(str(jumping)).index.keys
    third, last = max(k for k in keys if k <= 30), keys[-1]
    short = 55 - max(k for k in keys if k <= 40)
    assert len(keys) >= 5 and short < 20
    assert price(jumping, clip, findings) == 55
    assert price(jumping, clip, findings) == 2 * 60 + short
    assert price(jumping, clip, findings) == short
    assert price(jumping, clip, Findings()) == short, 'kept on disk'
    assert price(jumping, range(8), findings) == 8
    assert price(jumping, [0, 30, 59], findings) == 1 + (31 - third) + (60 - last), 'a jump to each group'
    assert price(jumping, clip, Findings(str(tmp_path / 'elsewhere'))) == 55
    refresh = films / 'intra_refresh.mp4'
    for expected in (55, None, 55, 55):
        found = price(refresh, clip, findings)
        assert expected is None or found == expected, 'jumps give other frames, so it is read in order for good'
    assert [price(films / 'h264_g250_b2.mp4', clip, findings) for _ in range(3)] == [55] * 3, 'nothing to gain'


def test_the_price_in_the_document():
    windows = [np.linspace(end - 64, end, 16).clip(end - 64, end - 1).astype(int) for end in range(64, 300)]
    reader = PyAVReader.__new__(PyAVReader)
    reader.index = Index(0, 300, 300, 300, list(range(300)), list(range(0, 300, 12)))
    jumps, order = (np.mean([reader.price(w.tolist(), jump) for w in windows]) for jump in (True, False))
    text = (Path(__file__).parents[2] / 'docs/video.md').read_text()
    assert f'costs {jumps:.0f} decoded frames a clip of 16 x 4 on average,\nread in order {order:.0f}.' in text


def test_changed_files_are_proven_again(films, findings, tmp_path):
    path = tmp_path / 'film.mp4'
    path.write_bytes((films / 'h264_g12_b2.mp4').read_bytes())
    prices = [price(path, range(40, 56, 2), findings) for _ in range(3)]
    path.write_bytes((films / 'h264_g12_b0.mp4').read_bytes())
    assert prices[0] == price(path, range(40, 56, 2), findings) == 55 and prices[2] < 20


def test_findings_survive_garbled_lines_and_locked_folders(tmp_path, films):
    path = str(films / 'h264_g12_b2.mp4')
    shared = Findings(str(tmp_path))
    key = shared.key(path, 'pyav')
    shared.put(key, 'seen', 60)
    with open(shared.file, 'ab') as file:
        file.write(b'\xff\xfe nonsense\n' + key.encode() + b' seek sixty\n' + key.encode() + b' ord')
    assert Findings(str(tmp_path)).get(key) == ('seen', 60)
    locked = Findings('/dev/null')
    locked.put(key, 'order', 3)
    assert locked.get(key) == ('order', 3)


def test_decord_and_opencv_are_compared_once(films, findings):
    """The comparison decodes a film by PyAV and by the decoder; after that a film costs what reading in order costs."""
    for decoder in ('decord', 'opencv'):
        path = str(films / 'h264_g12_b2.mp4')
        assert open_video(path, decoder, findings=findings).decoder == decoder
        lines = findings.file.read_text().count('\n')
        reader = open_video(path, decoder, findings=Findings())
        assert [numbered.number(f) for f in reader.read([20])] == [20] and reader.decoded == 21
        assert findings.file.read_text().count('\n') == lines
    assert open_video(str(films / 'cut.mp4'), 'decord', findings=findings).decoder == 'pyav'


def test_pictures_of_four_channels_are_no_film(tmp_path, findings):
    """decord gives lines of some widths with padding, as a fourth channel; PyAV takes over."""
    import cv2
    import decord
    path = str(tmp_path / 'narrow.avi')
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'XVID'), 25, (72, 96))
    for i in range(8):
        writer.write(np.full((96, 72, 3), 20 * i, np.uint8))
    writer.release()
    assert decord.VideoReader(path)[0].shape == (96, 72, 4)
    reader = open_video(path, 'decord', findings=findings)
    assert reader.decoder == 'pyav' and reader.read([3])[0].shape == (96, 72, 3)
