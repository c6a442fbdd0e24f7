# SPDX-License-Identifier: Apache-2.0
"""Frames by PyAV: in order, or after a jump to the last key frame where that was proven to give the same frames."""

import io
import os
from bisect import bisect_right
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple
from zlib import crc32

import numpy as np

from .cache import Findings
from .errors import NoDecoderError, VideoError

#: Containers announce a few frames more than they hold; the last frame stands for so many missing ones.
SLACK = 8
#: A jump must save this share of the frames that reading in order decodes, or it is not worth proving.
WORTH = 0.25
#: Frames that are rather decoded than jumped over.
NEAR = 4

#: Formats whose first plane holds the brightness, a byte a pixel.
BYTE_PLANES = {'gray', 'nv12', *(f'yuv{full}{kind}p' for full in ('', 'j') for kind in ('420', '422', '444'))}

Finish = Callable[[np.ndarray], np.ndarray]


def four_letters(path: str) -> str:
    """The code of a codec that an mp4 or mov file states; '' where there is none."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} is no file')
    with open(path, 'rb') as file:
        head = file.read(1 << 20)
        file.seek(max(os.path.getsize(path) - (1 << 20), 0))
        found = next((part for part in (head, file.read()) if b'stsd' in part), b'')
    code = found[found.find(b'stsd') + 16:][:4] if found else b''
    return code.decode() if code.isalnum() else ''


class Index(NamedTuple):
    """What the packets of a film tell without decoding it.

    Attributes:
        stream: Number of the film's stream.
        total: Number of its frames.
        announced: Number of frames that the container announces; 0 if it does not.
        held: Number of packets that are there.
        times: Time stamps in the order of display; None where they are missing or not unique.
        keys: Frames that decoding can start from, ascending.
    """
    stream: int
    total: int
    announced: int
    held: int
    times: Optional[List[int]]
    keys: List[int]


def upright(frame: Any, image: np.ndarray) -> np.ndarray:
    """Turn and mirror a decoded picture as its display matrix says, to the nearest right angle.

    The matrix maps a point of the stored picture to (a x + c y, b x + d y).
    """
    side = next((s for s in frame.side_data if s.type.name == 'DISPLAYMATRIX'), None)
    if side is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(side), '<i4')[:5].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[::-1 if d < 0 else 1, ::-1 if a < 0 else 1])


def digest(frame: Any) -> int:
    """A number that tells the frames of a film apart: of its brightness where that is a plane of bytes, else of all
    colours."""
    if frame.format.name not in BYTE_PLANES:
        return crc32(frame.to_ndarray(format='rgb24').tobytes())
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:plane.height, :plane.width]
    return crc32(rows.tobytes())


class PyAVReader:
    """A video file opened by PyAV.

    Args:
        path: The file.
        data: Its bytes, where it lies on no local disk.
        num_threads: Threads that decode.
        findings: What is known of files; None keeps nothing, and every clip is read in order.

    Attributes:
        total: Number of frames.
        fps: Mean frame rate, per second; 0 where it is unknown.
        decoded: Frames decoded so far: the price.

    Raises:
        VideoError: If it is no film, or no decoder for its codec is there.
        av.error.FFmpegError: If PyAV cannot open it.
    """
    decoder = 'pyav'

    def __init__(self, path: str, data: Optional[bytes] = None, num_threads: int = 1,
                 findings: Optional[Findings] = None) -> None:
        self.path, self._data, self.num_threads = path, data, num_threads
        self.decoded = 0
        self.findings = findings if data is None else None
        with self._open() as container:
            self.fps = self._check_streams(container)
            self.index = self._scan(container)
        self.total = self.index.total
        self._key = self._version_key() if self.findings else ''
        known = self.findings.get(self._key) if self.findings else None
        if known and known.frames:
            self.total = known.frames

    def _version_key(self) -> str:
        import av
        return Findings.key(self.path, f'pyav {av.__version__}')  # what one version proves, another need not do

    def _open(self) -> Any:
        import av
        av.logging.set_level(None)  # FFmpeg writes to the terminal by itself, without the name of the file
        if self._data is not None:
            container = av.open(io.BytesIO(self._data), metadata_errors='ignore')
        else:
            # 'file:' and the white list: a name with a colon is no protocol, a play list must not open other addresses
            container = av.open(f'file:{self.path}', metadata_errors='ignore', options={'protocol_whitelist': 'file'})
        for stream in container.streams.video:
            if stream.codec_context is not None:
                stream.codec_context.thread_count = self.num_threads
        return container

    def _check_streams(self, container: Any) -> float:
        kind = container.format.name
        if kind.endswith('_pipe') or kind == 'image2':
            raise VideoError(f'it is a picture ({kind.removesuffix("_pipe")}), not a video')
        films = _films(container)
        if not films:
            sound = ' of sound' if container.streams.audio else ''
            picture = ', only a cover picture' if container.streams.video else ''
            raise VideoError(f'it has no video stream{picture}: it is a file{sound} in {kind}')
        rate = films[0].average_rate
        return float(rate) if rate else 0.

    def _scan(self, container: Any) -> Index:
        """Count frames and key frames without decoding any. The film is the video stream with most packets: cover
        pictures and thumbnails have one."""
        films = _films(container)
        hidden = {s.index for s in films if s.codec_context is not None and s.codec_context.name in ('vp8', 'libvpx')}
        packets: Dict[int, List[Tuple[Optional[int], bool]]] = {s.index: [] for s in films}
        held = dict.fromkeys(packets, 0)
        for packet in container.demux(films):
            held[packet.stream_index] += packet.size > 0
            if packet.size and not packet.is_discard and (packet.stream_index not in hidden or _shown(packet)):
                packets[packet.stream_index].append((packet.pts, packet.is_keyframe))
        stream = max(packets, key=lambda number: len(packets[number]))
        self._check_codec(container.streams[stream])
        found = packets[stream]
        if not found:
            raise VideoError('it has no frames')
        # Packets come in the order of decoding; frames are numbered in the order of showing.
        counts = stream, len(found), container.streams[stream].frames, held[stream]
        times = [time for time, _ in found if time is not None]
        # Without a time of its own for every frame nobody can tell where a jump has led.
        if len(set(times)) < len(found):
            return Index(*counts, None, [0])
        order = sorted(times)
        place = {time: i for i, time in enumerate(order)}
        keys = sorted({0, *(place[time] for time, key in found if key and time is not None)})
        return Index(*counts, order, keys)

    def _check_codec(self, stream: Any) -> None:
        if stream.codec_context is None:
            code = four_letters(self.path) if self._data is None else ''
            raise NoDecoderError('PyAV has no decoder for its codec' + (f', {code}' if code else ''))

    def _frames(self, container: Any) -> Iterator[Any]:
        stream = container.streams[self.index.stream]
        for frame in container.decode(stream):
            self.decoded += 1
            yield frame

    def _array(self, frame: Any, finish: Optional[Finish]) -> np.ndarray:
        image = upright(frame, frame.to_ndarray(format='rgb24'))
        return finish(image) if finish else image

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, indices: Sequence[int], finish: Optional[Finish] = None) -> List[np.ndarray]:
        """The frames with these numbers, (H, W, 3) RGB, uint8, upright.

        Args:
            indices: Ascending frame numbers.
            finish: Applied to every frame as it is decoded; one frame of full size exists at a time.

        Raises:
            VideoError: If the film ends more than ``SLACK`` frames before one of them.
        """
        wanted = [int(i) for i in indices]
        if self._may_jump(wanted):
            found = self._read_jumping(wanted, finish)
            if found is not None:
                return found
            self._note('order')
        return self._read_in_order(wanted, finish)

    def price(self, wanted: Sequence[int], jump: bool) -> int:
        """Frames to decode for ``wanted``, in order or with jumps to key frames."""
        if not jump or self.index.times is None:
            return wanted[-1] + 1
        frames, at = 0, -1
        for index in wanted:
            key = self._key_before(index)
            frames += index + 1 - (key if self._jumps(key, at) else at)
            at = index + 1
        return frames

    def _key_before(self, index: int) -> int:
        return self.index.keys[bisect_right(self.index.keys, index) - 1]

    @staticmethod
    def _jumps(key: int, at: int) -> bool:
        return at < 0 or key > at + NEAR

    def _may_jump(self, wanted: Sequence[int]) -> bool:
        """Whether a jump saves frames and is proven. The first clip of a file never pays for the proof; the second one
        does."""
        if self.findings is None or self.index.times is None or wanted[-1] >= len(self.index.times):
            return False
        if self.price(wanted, True) > (1 - WORTH) * self.price(wanted, False):
            return False
        known = self.findings.get(self._key)
        if known is None:
            self._note('seen')
            return False
        if known.word == 'seen':
            self._note('seek' if self.prove() else 'order')
            known = self.findings.get(self._key)
        return known is not None and known.word == 'seek'

    def _note(self, word: str) -> None:
        if self.findings is not None:
            self.findings.put(self._key, word, self.total)

    def _read_in_order(self, wanted: Sequence[int], finish: Optional[Finish]) -> List[np.ndarray]:
        """Decode from the beginning to the last wanted frame. A film that ends a little early has its last frame
        repeated; its true length is kept."""
        import av
        need, found, last, count = set(wanted), {}, None, 0
        ended = True  # by itself, and not because all wanted frames are read
        with self._open() as container:
            try:
                for frame in self._frames(container):
                    if count in need:
                        found[count] = self._array(frame, finish)
                    last, count = frame, count + 1
                    if count > wanted[-1]:
                        ended = False
                        break
            except av.error.FFmpegError as error:
                raise VideoError(f'frame {count} of {self.total} cannot be decoded ({error.strerror})') from None
            if last is None or (ended and wanted[-1] - count >= SLACK):
                raise VideoError(f'only {count} of {self.total} frames can be decoded')
            if ended and count < self.total:
                self.total = count
                self._note('seen' if self.index.times is None else 'order')
                found.update({i: self._array(last, finish) for i in wanted if i >= count})
        return [found[i] for i in wanted]

    def _jump(self, container: Any, key: int) -> Iterator[Any]:
        stream = container.streams[self.index.stream]
        assert self.index.times is not None
        container.seek(self.index.times[key], stream=stream)
        return self._frames(container)

    def _read_jumping(self, wanted: Sequence[int], finish: Optional[Finish]) -> Optional[List[np.ndarray]]:
        """None if a frame is not where the packets say."""
        import av
        times, at, found = self.index.times, -1, []
        assert times is not None
        with self._open() as container:
            frames: Iterator[Any] = iter(())
            try:
                for index in wanted:
                    key = self._key_before(index)
                    if self._jumps(key, at):  # a file that was just opened stands at its first frame
                        frames = self._jump(container, key) if key or at > 0 else self._frames(container)
                    frame = next((f for f in frames if f.pts is None or f.pts >= times[index]), None)
                    if frame is None or frame.pts != times[index]:
                        return None
                    found.append(self._array(frame, finish))
                    at = index + 1
            except av.error.FFmpegError:
                return None
        return found

    def prove(self) -> bool:
        """Whether every frame that is decoded after a jump to the key frame before it equals the one read in order.

        Decodes the whole film twice.
        """
        import av
        times, keys = self.index.times, self.index.keys
        if times is None:
            return False
        try:
            with self._open() as container:
                order = [(frame.pts, digest(frame)) for frame in self._frames(container)]
            if [time for time, _ in order] != times:
                return False
            with self._open() as container:
                # from the last key frame: in file order a jump would lead to where the decoder stands anyway
                for key, end in zip(keys[::-1], [*keys[1:], len(times)][::-1]):
                    frames = self._jump(container, key)
                    for i in range(key, end):
                        frame = next((f for f in frames if f.pts is None or f.pts >= times[i]), None)
                        if frame is None or (frame.pts, digest(frame)) != order[i]:
                            return False
        except av.error.FFmpegError:
            return False
        return True

    def close(self) -> None:
        """Nothing stays open between two calls."""


def _films(container: Any) -> List[Any]:
    """The video streams that are no attached pictures (FFmpeg's AV_DISPOSITION_ATTACHED_PIC)."""
    return [s for s in container.streams.video if not int(getattr(s, 'disposition', 0) or 0) & 0x400]


def _shown(packet: Any) -> bool:
    """Whether a VP8 packet is displayed; its alternate reference frames are not (RFC 6386, 9.1)."""
    return bool(bytes(packet)[:1] and bytes(packet)[0] & 0x10)
