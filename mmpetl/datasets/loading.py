# SPDX-License-Identifier: Apache-2.0
"""Load an image from a file or from a member of a zip file (``archive.zip@member``)."""

import errno
import io
import os
import zipfile
import zlib
from typing import Any, Dict, Optional, Sequence, Tuple

import cv2
import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from PIL import Image

from ..registry import TRANSFORMS
from ..weights.guards import MAX_RATIO, SMALL
from ..weights.reading import open_regular
from ..weights.reading import read_bytes as read_regular
from .how_to_get import how_to_get
from .picture_readers import check_growth
from .pictures import DAMAGED, WHITE, decode_picture

#: Open archives by (process, path): a file handle must not be shared by forked loader workers.
_ARCHIVES: Dict[Tuple[int, str], zipfile.ZipFile] = {}


def split_member(path: str) -> Tuple[str, str]:
    """``'a.zip@b.png'`` -> ``('a.zip', 'b.png')``; a plain path -> ``(path, '')``."""
    archive, found, member = path.partition('.zip@')
    return (archive + '.zip', member) if found else (path, '')


def read_bytes(path: str, backend_args: Optional[dict] = None) -> bytes:
    """Content of a file or of a member of a zip file.

    Raises:
        FileNotFoundError: If the file, the archive or the member is missing.
    """
    archive, member = split_member(path)
    if not member:
        return fileio.get(path, backend_args=backend_args) if backend_args else read_regular(path)
    key = (os.getpid(), archive)
    if key not in _ARCHIVES:
        with open_regular(archive):
            pass
        try:
            _ARCHIVES[key] = zipfile.ZipFile(archive)
        except zipfile.BadZipFile as error:
            raise ValueError(f'{archive} is no zip archive, or a damaged one ({error})') from None
    try:
        info = _ARCHIVES[key].getinfo(member)
    except KeyError:
        raise FileNotFoundError(f'{archive} has no member {member!r}') from None
    if info.file_size > max(SMALL, MAX_RATIO * info.compress_size):
        raise ValueError(f'is a zip bomb: {info.compress_size:,} bytes would become {info.file_size:,}')
    try:
        return _ARCHIVES[key].read(info)
    # the last two: compressed in a way that Python does not know, and encrypted
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f'cannot be read ({error})') from None


def is_plain(data: bytes) -> bool:
    """Whether every decoder gives the same numbers for a file: JPEG of one or three components, and PNG of at most 8
    bits without transparency."""
    if data[:8] == b'\x89PNG\r\n\x1a\n':
        header = data[:data.find(b'IDAT')]
        # bytes 24 and 25: bits, and kind (grey, RGB, palette)
        return data[24] <= 8 and data[25] in (0, 2, 3) and b'tRNS' not in header and b'eXIf' not in header
    return data[:2] == b'\xff\xd8' and b'Adobe' not in data[:4096]  # CMYK files have Adobe's mark


def _pixels(data: bytes) -> int:
    """Pixels that a picture file announces; 0 where Pillow does not know."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.width * image.height
    except Image.DecompressionBombError as error:
        raise ValueError(f'is a decompression bomb ({error})') from None
    except DAMAGED:
        return 0


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` that also reads ``archive.zip@member`` and names the file it cannot decode.

    Decodes with Pillow by default, as the papers do. The rules for 16-bit, 32-bit and floating-point pictures, for
    transparency and orientation are those of :mod:`mmpetl.datasets.pictures`, whatever the decoder; DICOM, TIFF of
    several bands and NumPy arrays are read as well (``pip install 'mmpetl[readers]'``).

    Args:
        imdecode_backend: Decoder of plain 8-bit JPEG and PNG files, see :class:`mmcv.transforms.LoadImageFromFile`.
        background: RGB colour, 0..255, under transparent pixels; None leaves the alpha channel out.
        window: (low, high): values that become black and white in pictures of more than 8 bits.
        bands: Which bands, the first is 1, are red, green and blue, or which one is grey, in a picture of several
            bands.
        **kwargs: Other arguments of mmcv's class. ``color_type='grayscale'`` and ``'unchanged'`` are left to mmcv, with
            its rules.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(self,
                 imdecode_backend: str = 'pillow',
                 background: Optional[Sequence[int]] = WHITE,
                 window: Optional[Sequence[float]] = None,
                 bands: Optional[Sequence[int]] = None,
                 **kwargs: Any) -> None:
        super().__init__(imdecode_backend=imdecode_backend, **kwargs)
        if background is not None and (len(background) != 3 or not all(0 <= c <= 255 for c in background)):
            raise ValueError(f'LoadImage: background={background!r} is no RGB colour of three numbers 0..255, or None')
        if window is not None and (len(window) != 2 or not -np.inf < window[0] < window[1] < np.inf):
            raise ValueError(f'LoadImage: window={window!r} is not (low, high), low below high')
        if bands is not None and (len(bands) not in (1, 3) or not all(isinstance(b, int) and b > 0 for b in bands)):
            raise ValueError(f'LoadImage: bands={bands!r} are not one or three band numbers from 1 on')
        self.background = None if background is None else tuple(background)
        self.window = None if window is None else (float(window[0]), float(window[1]))
        self.bands = None if bands is None else tuple(bands)

    def decode(self, data: bytes) -> np.ndarray:
        """(H, W, 3) uint8 in BGR.

        Raises:
            ValueError: What is wrong, to be put after the name of the file.
        """
        if not data:
            raise ValueError('cannot be decoded (it is empty)')
        ours = self.color_type in ('color', 'color_ignore_orientation')
        if ours and (self.imdecode_backend in ('pillow', 'tifffile') or self.bands or not is_plain(data)):
            upright = self.color_type == 'color'
            return decode_picture(data, self.background, self.window, self.bands, upright)[:, :, ::-1]
        check_growth(_pixels(data) * 3, data)
        try:
            image = mmcv.imfrombytes(data, flag=self.color_type, backend=self.imdecode_backend)
        except (*DAMAGED, cv2.error) as error:
            raise ValueError(f'cannot be decoded ({" ".join(str(error).split())})') from None
        if image is None:
            raise ValueError('cannot be decoded')
        return image

    def transform(self, results: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """Add ``img`` (H, W, 3) uint8 in BGR, ``img_shape`` and ``ori_shape``; what upstream's inferencers have read
        themselves (an ``img`` without a path, in BGR) stays as it is.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file cannot be decoded, or its values fit no rule.
        """
        if 'img_path' not in results and 'img' in results:
            return results
        path = results['img_path']
        try:
            image = self.decode(read_bytes(path, self.backend_args))
        except ValueError as error:
            again = ': fetch the file again' if 'cannot be decoded' in str(error) else ''
            raise ValueError(f'{path} {error}{again}') from None
        except FileNotFoundError as error:
            if not how_to_get(path):
                raise
            # with a file name, by which a run finds the key of its config
            raise FileNotFoundError(error.errno or errno.ENOENT, f'No such file; {how_to_get(path)}', path) from None
        results['img'] = image.astype('float32') if self.to_float32 else np.ascontiguousarray(image)
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results
