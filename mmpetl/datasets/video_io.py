"""Opening and decoding video files by decord, PyAV or OpenCV through mmaction2's transforms, with errors that name the
file.

decord has wheels for x86-64 only; PyAV and OpenCV take its place elsewhere. All three give the same frames for intact
files.
"""

import importlib.util
import os
from functools import partial
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
from mmcv.transforms import BaseTransform

from ..registry import TRANSFORMS
from ..sites import nearest
from .video_probe import reason

#: Decoder -> (module that must be importable, transform that opens a file, transform that decodes frames).
DECODERS = {
    'decord': ('decord', 'DecordInit', 'DecordDecode'),
    'pyav': ('av', 'PyAVInit', 'PyAVDecode'),
    'opencv': ('cv2', 'OpenCVInit', 'mmpetl.OpenCVFrames'),
}


class VideoError(ValueError):
    """A video file that cannot be read; the message is one line that names it."""


def choose_decoder(decoder: str = 'auto') -> str:
    """The decoder to use: ``decoder`` itself, or for 'auto' the first of decord, PyAV and OpenCV that is installed.

    Raises:
        ValueError: If the decoder is unknown or not installed.
    """
    if decoder == 'auto':
        return next(name for name, (module, *_) in DECODERS.items() if importlib.util.find_spec(module))
    if decoder not in DECODERS:
        raise ValueError(f'unknown decoder {decoder!r}' + nearest(decoder, ['auto', *DECODERS]))
    if importlib.util.find_spec(DECODERS[decoder][0]) is None:
        package = {'pyav': 'av', 'opencv': 'opencv-python'}.get(decoder, decoder)
        raise ValueError(f"decoder '{decoder}' is not installed: pip install {package}, or write decoder='auto'")
    return decoder


def decoder_transforms(decoder: str = 'auto', **init: Any) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Configs of the two transforms that open a video and decode its frames; a sampling transform goes between them.

    Args:
        decoder: 'auto', 'decord', 'pyav' or 'opencv'.
        **init: Options of the first, such as ``io_backend`` and, for decord, ``num_threads``.
    """
    _, opens, decodes = DECODERS[choose_decoder(decoder)]
    return dict(type=opens, **init), dict(type=decodes)


def _build(config: Dict[str, Any]) -> BaseTransform:
    # Registers the transforms; imported here because image users need none of it.
    import mmaction.datasets  # noqa: F401
    from mmaction.registry import TRANSFORMS as ACTION_TRANSFORMS
    return ACTION_TRANSFORMS.build(config)


@TRANSFORMS.register_module()
class OpenCVFrames(BaseTransform):
    """Decode ``frame_inds`` by OpenCV; upstream's transform runs forever where a file ends before the frame that it
    wants.

    Containers often announce a few frames more than they hold, so the last frame stands for up to ``slack`` missing
    ones.

    Args:
        slack: Missing frames at the end that are tolerated.
    """

    def __init__(self, slack: int = 8) -> None:
        self.slack = slack

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        """Adds ``imgs``: a list of (H, W, 3) RGB arrays, uint8."""
        reader, frames = results['video_reader'], []
        for index in results['frame_inds']:
            frame = next((f for f in (reader[i]
                                      for i in range(index,
                                                     max(index - self.slack, 0) - 1, -1)) if f is not None), None)
            if frame is None:
                raise ValueError(f'frame {index} of {results["total_frames"]} cannot be decoded')
            frames.append(np.ascontiguousarray(frame[:, :, ::-1]))
        results['imgs'] = frames
        results['video_reader'] = None
        return results


def _open_by_name(results: Dict[str, Any], num_threads: int) -> Dict[str, Any]:
    """What mmaction2's ``DecordInit`` does, without reading the file into memory first: from there decord crashes on an
    AVI cut off."""
    import decord
    name = results['filename']
    if not os.path.splitext(name)[1]:
        name += '.mp4'
    if not os.path.isfile(name):
        raise FileNotFoundError(name)
    reader = decord.VideoReader(name, num_threads=num_threads)
    results.update(total_frames=len(reader), video_reader=reader, avg_fps=reader.get_avg_fps())
    return results


@TRANSFORMS.register_module()
class VideoInit(BaseTransform):
    """Open a video by the decoder that the config names.

    Args:
        decoder: 'auto' (the first of decord, PyAV, OpenCV that is installed), 'decord', 'pyav' or 'opencv'.
        **kwargs: Options of mmaction2's transform of that decoder: ``io_backend``, ``num_threads``.
    """

    def __init__(self, decoder: str = 'auto', **kwargs: Any) -> None:
        self.decoder = choose_decoder(decoder)
        self.init: Callable[[Dict[str, Any]], Dict[str, Any]]
        if self.decoder == 'decord' and kwargs.get('io_backend', 'disk') in ('disk', 'local'):
            self.init = partial(_open_by_name, num_threads=kwargs.get('num_threads', 1))
        else:
            self.init = _build(decoder_transforms(self.decoder, **kwargs)[0])

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        """``filename`` -> adds ``video_reader``, ``total_frames`` and ``decoder``.

        Raises:
            VideoError: If the file is missing, empty, damaged, or has no picture stream.
        """
        name = results['filename']
        try:
            results = self.init(results)
            if self.decoder == 'pyav' and results['total_frames'] <= 0:
                results = self._count_packets(results)
        except FileNotFoundError:
            raise VideoError(f'{name}: no such file') from None
        except Exception as error:
            raise VideoError(f'{name}: {self.decoder} cannot open it: {reason(error)}') from None
        if results['total_frames'] <= 0:
            raise VideoError(f'{name}: it has no frames')
        results['decoder'] = self.decoder
        return results

    def _count_packets(self, results: Dict[str, Any]) -> Dict[str, Any]:
        """Matroska and WebM files do not announce their number of frames: count the packets, then open again."""
        count = sum(packet.size > 0 for packet in results['video_reader'].demux(video=0))
        results = self.init(results)
        results['total_frames'] = count
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(decoder={self.decoder!r})'


@TRANSFORMS.register_module()
class VideoDecode(BaseTransform):
    """Decode the sampled frames, each of them once, by the decoder that opened the file.

    Multi-view sampling asks for the same frame in several views, and short videos repeat their last one; upstream
    decodes every occurrence. Repeated frames are copies, so transforms may work in place.
    """

    def __init__(self) -> None:
        self._decoders: Dict[str, BaseTransform] = {}

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        """``frame_inds`` (F,) -> adds ``imgs`` (a list of F arrays (H, W, 3), RGB, uint8), ``img_shape``,
        ``original_shape``.

        Raises:
            VideoError: If a frame cannot be decoded.
        """
        name = results['decoder']
        if name not in self._decoders:
            self._decoders[name] = _build(decoder_transforms(name)[1])
        wanted = np.asarray(results['frame_inds']).reshape(-1)
        unique, place = np.unique(wanted, return_inverse=True)
        results['frame_inds'] = unique
        try:
            results = self._decoders[name](results)
        except Exception as error:
            raise VideoError(f'{results["filename"]}: {name} cannot decode it: {reason(error)}') from None
        results['frame_inds'] = wanted
        results['imgs'] = spread(results['imgs'], place)
        results['img_shape'] = results['original_shape'] = results['imgs'][0].shape[:2]
        return results


def spread(frames: List[np.ndarray], place: np.ndarray) -> List[np.ndarray]:
    """``[frames[p] for p in place]`` in which no two entries share memory."""
    used = set()
    spread_frames = []
    for p in place.reshape(-1).tolist():
        spread_frames.append(frames[p].copy() if p in used else frames[p])
        used.add(p)
    return spread_frames
