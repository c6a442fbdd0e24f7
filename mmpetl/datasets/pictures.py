# SPDX-License-Identifier: Apache-2.0
"""Any picture file as (H, W, 3) uint8 that shows what the file holds: one rule each for the range of its numbers, for
transparency, and for the way up.

* Pictures of 8 bits and less are taken as they are. Whole numbers of more bits: 0 is black, 65535 (or the range that
  the file states) white. Floating-point numbers: 0 is black, 1 white. What lies outside, and a picture whose values
  stay below a sixteenth of the range, is refused by name; ``window=(low, high)`` says which values are black and white
  and clips the others.
* Transparent pixels are laid on a background, white by default.
* The orientation in EXIF is applied. Of a file with several pictures the first counts.
"""

import io
import struct
import zipfile
import zlib
from typing import Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageOps

from .picture_readers import (
    ORIENTATION,
    BandsError,
    Stored,
    check_growth,
    choose_bands,
    is_dicom,
    read_deep_png,
    read_dicom,
    read_numpy,
    read_tiff,
    turn,
)

WHITE = (255, 255, 255)
Window = Optional[Tuple[float, float]]
#: What the libraries below raise for damaged files.
DAMAGED = (OSError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError,
           ValueError, RuntimeError, ArithmeticError, struct.error, zlib.error, zipfile.BadZipFile,
           Image.DecompressionBombError)
_SIGNATURES = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # TIFF and BigTIFF


def decode_picture(data: bytes,
                   background: Optional[Sequence[int]] = WHITE,
                   window: Window = None,
                   bands: Optional[Sequence[int]] = None,
                   upright: bool = True) -> np.ndarray:
    """A picture file as (H, W, 3) uint8 in RGB.

    Args:
        data: Content of the file.
        background: RGB colour, 0..255, under transparent pixels; None leaves the alpha channel out.
        window: Values that become black and white in pictures of more than 8 bits; None for the rule above.
        bands: Which bands, the first is 1, are red, green and blue, or which one is grey, where there are several.
        upright: Apply the orientation that EXIF states.

    Raises:
        ValueError: What is wrong, to be put after the name of the file.
    """
    try:
        stored = read_stored(data, bands, upright)
    except DAMAGED as error:
        raise ValueError(what_is_wrong(error)) from None
    return show(stored, background, window)


def what_is_wrong(error: BaseException) -> str:
    """An error of :func:`read_stored` in one line, to be put after the name of the file."""
    text = ' '.join(str(error).split()) or type(error).__name__
    # the readers' own words begin with what the file is
    known = type(error) in (ValueError, BandsError) and text.split(' ')[0] in ('is', 'has', 'holds')
    return text if known else f'cannot be decoded ({text})'


def read_stored(data: bytes, bands: Optional[Sequence[int]] = None, upright: bool = True) -> Stored:
    """The picture with its own numbers; see :func:`decode_picture`."""
    if data[:6] == b'\x93NUMPY' or data[:4] == b'PK\x03\x04':
        return read_numpy(data, bands)
    if is_dicom(data):
        scan = read_dicom(data)
        if bands is not None:
            scan.values = choose_bands(scan.values if scan.values.ndim == 3 else scan.values[:, :, None], bands)
        return scan
    tiff = data[:4] in _SIGNATURES
    try:
        image = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError:
        if not tiff:
            raise ValueError('it is no picture file, or a damaged one') from None
        image = None
    if image is not None:
        check_growth(image.width * image.height * 3, data)
    stored = read_tiff(data, image, bands) if tiff else read_deep_png(data)
    if image is None:
        assert stored is not None
        return stored
    if stored is None:
        image.load()
        stored = _from_pillow(_upright(image) if upright else image)
    elif upright and not tiff:
        stored.values = turn(stored.values, image.getexif().get(ORIENTATION, 1))
    if bands is not None and not tiff:
        values = stored.values
        stored.values = choose_bands(values if values.ndim == 3 else values[:, :, None], bands)
    return stored


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; damaged EXIF data beside a whole picture counts as none."""
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGED:
        return image


def _from_pillow(image: Image.Image) -> Stored:
    """Every mode of Pillow as grey, RGB, or RGB with alpha."""
    if image.mode in ('I', 'F') or image.mode.startswith('I;'):
        values = np.asarray(image)
        if values.dtype.kind == 'u':
            values = values.astype(np.uint16)  # in the machine's byte order
        key = image.info.get('transparency')
        if isinstance(key, int) and values.dtype == np.uint16:
            return Stored(np.dstack([values, np.where(values == key, 0, 65535).astype(np.uint16)]))
        return Stored(values)
    if image.mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info:
        return Stored(np.asarray(image if image.mode == 'RGBA' else image.convert('RGBA')))
    return Stored(np.asarray(image if image.mode in ('L', 'RGB') else image.convert('RGB')))


def show(stored: Stored, background: Optional[Sequence[int]] = WHITE, window: Window = None) -> np.ndarray:
    """Scale to 0..255 and lay on the background: (H, W, 3) uint8.

    Raises:
        ValueError: If the values do not fit the rule of their kind and no window is given.
    """
    values, alpha = stored.values, None
    if values.ndim == 3 and values.shape[2] in (2, 4):
        values, alpha = values[:, :, :-1], values[:, :, -1:]
    picture = _scale(values, stored.span, window)
    if stored.invert:
        picture = 255 - picture
    if picture.ndim == 2:
        picture = picture[:, :, None]
    picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
    if alpha is not None and background is not None:
        top = np.iinfo(alpha.dtype).max if alpha.dtype.kind in 'ui' else 1
        cover = np.rint(alpha.astype(np.float64) * (255 / top)).clip(0, 255).astype(np.uint32)
        under = np.asarray(background, np.uint32)
        # + 127: to the nearest
        picture = ((picture * cover + under * (255 - cover) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(picture)


def _scale(values: np.ndarray, span: Window, window: Window) -> np.ndarray:
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8 and span is None:
        return values
    limits = window or span
    if limits is None:
        limits = (0., 65535.) if values.dtype.kind in 'ui' else (0., 1.)
        _check_range(values, limits[1])
    low, high = limits
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)  # in this order: whole results stay whole
    return np.rint(np.nan_to_num(scaled, nan=0., posinf=255., neginf=0.).clip(0, 255)).astype(np.uint8)


def _check_range(values: np.ndarray, top: float) -> None:
    """Refuse values outside 0..top, and a picture that would be as good as black.

    Raises:
        ValueError: With the values that there are.
    """
    kind = 'whole numbers' if values.dtype.kind in 'ui' else 'numbers'
    advice = 'say which are black and white by window=(low, high) in mmpetl.LoadImage'
    if not np.isfinite(values).all():
        raise ValueError(f'holds NaN or infinite numbers: {advice} (NaN becomes black)')
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > top or 0 < high < top / 16:  # 12 bits, as cameras and scanners have, fill a sixteenth of 16
        why = f'outside 0..{top:g}' if low < 0 or high > top else f'all below a sixteenth of 0..{top:g}'
        raise ValueError(f'holds {kind} from {low:g} to {high:g}, {why}: {advice}')
