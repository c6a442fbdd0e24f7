# SPDX-License-Identifier: Apache-2.0
"""Write videos whose frames carry their number: python numbered.py FOLDER.

A process of its own: decord brings its own codec libraries, and PyAV cannot encode some formats beside them.
"""

import shutil
import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

COUNT, HEIGHT, WIDTH = 60, 48, 64
#: name -> options of :func:`write`
FORMS = {}
#: name -> what is done to the stored picture, and the display matrix (a, b, c, d) that undoes it
ROTATIONS = {
    'rot0.mp4': (lambda f: f, (1, 0, 0, 1)),
    'rot90.mp4': (lambda f: np.rot90(f, 1), (0, 1, -1, 0)),
    'rot180.mp4': (lambda f: np.rot90(f, 2), (-1, 0, 0, -1)),
    'rot270.mp4': (lambda f: np.rot90(f, 3), (0, -1, 1, 0)),
    'mirrored.mp4': (lambda f: f[:, ::-1], (-1, 0, 0, 1)),
}
#: first frame that is shown after a cut by stream copy -> its file
CUTS = {19: 'cut.mp4', 30: 'cut_late.mp4'}
ODD_NAMES = ('no_suffix', 'name with blank, comma.mp4', 'a:b.mp4', 'percent%d.mp4', 'quote\'s "x".mp4', 'ünï 视频.mp4')


def form(name, codec, pix='yuv420p', container=None, rate=24, tag=None, group=12, b_frames=0, times=None, **options):
    options = {key.replace('_', '-'): str(value) for key, value in options.items()}
    FORMS[name] = dict(codec=codec, pix=pix, container=container, rate=rate, tag=tag, group=group, b_frames=b_frames,
                       times=times, options=options)


for g in (12, 250):
    for b in (0, 2):
        form(f'mpeg4_g{g}_b{b}.avi', 'mpeg4', group=g, b_frames=b)
        form(f'xvid_g{g}_b{b}.avi', 'mpeg4', group=g, b_frames=b, tag='XVID')
        form(f'mpeg4_g{g}_b{b}.mp4', 'mpeg4', group=g, b_frames=b)
        form(f'h264_g{g}_b{b}.avi', 'libx264', group=g, b_frames=b)
        form(f'h264_g{g}_b{b}.mp4', 'libx264', group=g, b_frames=b)
for suffix in ('mkv', 'mov', 'flv'):
    form(f'h264.{suffix}', 'libx264', b_frames=2)
form('h264_g12.ts', 'libx264', b_frames=2, container='mpegts')
form('h264_g250.ts', 'libx264', group=250, b_frames=2, container='mpegts')
form('open_group.mp4', 'libx264', x264_params='open-gop=1:keyint=12:bframes=3')
form('open_group.mkv', 'libx264', x264_params='open-gop=1:keyint=12:bframes=3')
form('intra_refresh.mp4', 'libx264', x264_params='intra-refresh=1:keyint=12')
form('h264_10bit.mp4', 'libx264', pix='yuv420p10le')
form('h264_444.mp4', 'libx264', pix='yuv444p')
form('hevc_g250.mp4', 'libx265', tag='hvc1', group=250, x265_params='log-level=none')
form('hevc_g24.mp4', 'libx265', tag='hvc1', x265_params='log-level=none:keyint=24:min-keyint=24')
form('hevc_g24_closed.mp4', 'libx265', tag='hvc1', x265_params='log-level=none:keyint=24:min-keyint=24:open-gop=0')
form('hevc_10bit.mp4', 'libx265', pix='yuv420p10le', tag='hvc1', x265_params='log-level=none')
form('vp9.webm', 'libvpx-vp9', deadline='realtime', cpu_used=8)
form('vp8.webm', 'libvpx', deadline='realtime', cpu_used=8)
form('vp8_hidden.webm', 'libvpx', deadline='good', cpu_used=4, auto_alt_ref=1, lag_in_frames=10)
form('mjpeg.avi', 'mjpeg', pix='yuvj420p')
form('mpeg2.mpg', 'mpeg2video', rate=25, b_frames=2, container='mpeg')
form('mpeg2.mp4', 'mpeg2video', rate=25, b_frames=2)
form('mpeg2.ts', 'mpeg2video', rate=25, b_frames=2, container='mpegts')
form('wmv2.wmv', 'wmv2', container='asf')
form('wmv2.avi', 'wmv2')
form('flv1.flv', 'flv')
form('prores.mov', 'prores_ks', pix='yuv422p10le')
form('ffv1.mkv', 'ffv1')
form('av1.mp4', 'libsvtav1', preset=12, svtav1_params='keyint=12')
form('animated.gif', 'gif', pix='rgb8', rate=25)
for suffix in ('mp4', 'mkv'):
    form(f'variable_rate.{suffix}', 'libx264', b_frames=2, rate=100, times=lambda i: i * (i + 1) // 2)


def picture(number, height=HEIGHT, width=WIDTH):
    """Frame ``number``, (height, width, 3): bits of the number in the top quarter, red at the left below it."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 0], frame[..., 2] = np.linspace(40, 200, width)[None], np.linspace(40, 200, height)[:, None]
    for bit in range(8):
        frame[:height // 4, bit * width // 8:(bit + 1) * width // 8] = 255 if (number >> bit) & 1 else 0
    frame[height // 4:height // 2, :width // 2] = (255, 0, 0)
    return frame


def number(frame):
    """The number of a decoded frame; -1 if it does not stand upright."""
    height, width = frame.shape[:2]
    left = frame[height // 4 + 2:height // 2 - 2, 2:width // 2 - 2].reshape(-1, 3).mean(0)
    if not (left[0] > 180 and left[1] < 80 and left[2] < 80):
        return -1
    fields = [frame[height // 16:3 * height // 16 + 1, bit * width // 8 + 2:(bit + 1) * width // 8 - 2]
              for bit in range(8)]
    return sum(int(field.mean() > 128) << bit for bit, field in enumerate(fields))


def write(path, codec='libx264', pix='yuv420p', container=None, rate=24, tag=None, group=12, b_frames=0, times=None,
          options=None, count=COUNT, size=(HEIGHT, WIDTH), change=None):
    """Write one file."""
    import av
    if codec == 'libx264':
        options = {'preset': 'ultrafast', **(options or {})}
        if 'x264-params' not in options:
            options['x264-params'] = f'bframes={b_frames}'
    with av.open(str(path), 'w', format=container) as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        context = stream.codec_context
        if codec != 'gif':
            context.gop_size = group
            context.max_b_frames = b_frames
        if codec in ('mpeg4', 'mpeg2video', 'wmv2', 'flv', 'mjpeg'):
            context.qmin, context.qmax, context.bit_rate = 2, 4, 2_000_000
        if tag:
            context.codec_tag = tag
        for i in range(count):
            image = picture(i, *size)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(change(image) if change else image), 'rgb24')
            if not i:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix
            frame = frame.reformat(format=pix)
            frame.pts, frame.time_base = times(i) if times else i, Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def turn(path, matrix):
    """Write a display matrix into the track header of an mp4."""
    data = bytearray(Path(path).read_bytes())
    at = data.index(b'tkhd') + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[at:at + 36] = struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30)
    Path(path).write_bytes(data)


def cut(source, target, first):
    """Copy a film's packets so that it begins at frame ``first``; the frames before it stay in the file, hidden by an
    edit list."""
    import av
    with av.open(str(source)) as old, av.open(str(target), 'w') as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                shift = int(Fraction(first, 24) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                new.mux(packet)


def cover(path, film, attached):
    """A picture as first video stream, then, where ``film`` is set, the film or else a tone."""
    import av
    with av.open(str(path), 'w') as file:
        still = file.add_stream('mjpeg', rate=24)
        still.width, still.height, still.pix_fmt = WIDTH, HEIGHT, 'yuvj420p'
        moving = file.add_stream('libx264' if film else 'aac', rate=24 if film else 8000)
        if film:
            moving.width, moving.height, moving.pix_fmt = WIDTH, HEIGHT, 'yuv420p'
        if attached:
            still.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(picture(255), 'rgb24').reformat(format='yuvj420p')
        frame.pts, frame.time_base = 0, Fraction(1, 24)
        file.mux(still.encode(frame))
        file.mux(still.encode())
        for i in range(COUNT if film else 20):
            if film:
                frame = av.VideoFrame.from_ndarray(picture(i), 'rgb24').reformat(format='yuv420p')
                frame.time_base = Fraction(1, 24)
            else:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
                frame.sample_rate = 8000
            frame.pts = i if film else 1024 * i
            file.mux(moving.encode(frame))
        file.mux(moving.encode())


def main(folder):
    for name, options in FORMS.items():
        write(folder / name, **options)
    for name, (change, matrix) in ROTATIONS.items():
        write(folder / name, change=change)
        turn(folder / name, matrix)
    for first, name in CUTS.items():
        cut(folder / 'h264_g250_b2.mp4', folder / name, first)
    cover(folder / 'cover_first.mkv', True, False)
    cover(folder / 'attached_first.mp4', True, True)
    cover(folder / 'sound_and_cover.mp4', False, True)
    for name in ODD_NAMES:
        shutil.copy(folder / 'h264_g12_b0.mp4', folder / name)
    data = (folder / 'h264_g12_b0.mp4').read_bytes()
    (folder / 'unknown_codec.mp4').write_bytes(data.replace(b'avc1', b'xyz1'))


if __name__ == '__main__':
    main(Path(sys.argv[1]))
