# SPDX-License-Identifier: Apache-2.0
"""Pictures that Pillow does not read, or reads only in part: TIFF of any bands and numbers, 16-bit colour, DICOM,
NumPy arrays. Each reader returns the stored values, not yet scaled (see :mod:`mmpetl.datasets.pictures`)."""

import io
import math
from dataclasses import dataclass
from typing import Any, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from ..weights.guards import MAX_RATIO, SMALL
from ..weights.reading import check_array_header, read_arrays

#: TIFF tags: bits per sample, photometric interpretation, orientation, samples per pixel, meaning of extra samples,
#: sample format.
BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, EXTRA, FORMAT = 258, 262, 274, 277, 338, 339
#: Photometric interpretations whose first three (four) samples are colours: RGB, CMYK, YCbCr, CIE L*a*b*.
COLOURS = (2, 5, 6, 8)


def check_growth(count: int, data: bytes) -> None:
    """Refuse a picture of ``count`` numbers whose file is far too small for them, before memory is taken.

    Raises:
        ValueError: If it is a decompression bomb.
    """
    if count > max(SMALL, MAX_RATIO * len(data)):
        raise ValueError(f'is a decompression bomb: {len(data):,} bytes would become {count:,} numbers')


@dataclass
class Stored:
    """A picture as its file holds it.

    Attributes:
        values: (H, W) grey, (H, W, 3) RGB, or (H, W, 2) and (H, W, 4) with the alpha channel last; any kind of number.
        span: The values that are black and white where the file states them.
        invert: Whether the lowest value is white.
    """
    values: np.ndarray
    span: Optional[Tuple[float, float]] = None
    invert: bool = False


class BandsError(ValueError):
    """Which bands are meant is not known.

    Attributes:
        count: How many bands the picture has.
    """

    def __init__(self, text: str, count: int) -> None:
        super().__init__(text)
        self.count = count


def choose_bands(values: np.ndarray, bands: Optional[Sequence[int]], colours: bool = False) -> np.ndarray:
    """The bands (H, W, C) that are red, green and blue, or grey.

    Args:
        values: (H, W, C).
        bands: Numbers of one or three bands, the first is 1; None takes the file's word for what they are.
        colours: Whether the file says that its first three bands are red, green and blue.

    Raises:
        BandsError: If it is not known which bands are meant.
    """
    count = values.shape[2]
    if bands is not None:
        if max(bands) > count:
            raise BandsError(f'has {count} band{"s" * (count > 1)}, and bands={tuple(bands)} asks for band '
                             f'{max(bands)}', count)
        chosen = values[:, :, [b - 1 for b in bands]]
        return chosen[:, :, 0] if len(bands) == 1 else chosen
    if count == 1:
        return values[:, :, 0]
    if count == 3 or colours:
        return values[:, :, :3]
    raise BandsError(f'has {count} bands: say which are red, green and blue by bands=(3, 2, 1), or one of them, in '
                     'mmpetl.LoadImage', count)


def _need(name: str, what: str) -> Any:
    """Import a reader.

    Raises:
        ValueError: With what to install.
    """
    import importlib
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"is {what}, for which {name} is needed: pip install 'mmpetl[readers]'") from None


def read_tiff(data: bytes, image: Optional[Image.Image], bands: Optional[Sequence[int]]) -> Optional[Stored]:
    """The first page of a TIFF file, or None where Pillow gives all of it (8 bits of grey, RGB, CMYK, alpha).

    Args:
        data: The file.
        image: The file as Pillow has opened it, None where it cannot.
        bands: See :func:`choose_bands`.

    Raises:
        ValueError: If tifffile is needed and missing, or the bands are not known.
    """
    if image is not None and bands is None:
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits, count, kind = tags.get(BITS, (1,)), tags.get(SAMPLES, 1), tags.get(FORMAT, (1,))
        extra = tuple(np.atleast_1d(tags.get(EXTRA, ())))
        # what Pillow understands: grey, colours, grey with alpha
        known = count == 1 or tags.get(PHOTOMETRIC) in COLOURS or (count == 2 and extra[:1] in ((1,), (2,)))
        if max(bits) <= 8 and set(kind) == {1} and known:
            return None
        if count == 1 and max(bits) > 8 and tags.get(PHOTOMETRIC) in (0, 1):
            values = np.asarray(image)
            if values.dtype == np.int32 and kind[0] == 1:  # Pillow has no unsigned 32 bits
                values = values.view(np.uint32)
            span = (0., float(2**bits[0] - 1)) if kind[0] == 1 and 8 < bits[0] < 16 else None
            return Stored(values, span, invert=tags.get(PHOTOMETRIC) == 0)
    return _by_tifffile(data, bands)


def _by_tifffile(data: bytes, bands: Optional[Sequence[int]]) -> Stored:
    tifffile = _need('tifffile', 'a TIFF file of several bands or unusual numbers')
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        check_growth(math.prod(page.shape), data)
        values = page.asarray()
        photometric, axes = int(page.photometric), page.axes
        alpha = any(int(e) in (1, 2) for e in page.extrasamples or ())
        orientation = page.tags[ORIENTATION].value if ORIENTATION in page.tags else 1
    if values.ndim == 3 and axes.startswith('S'):
        values = np.moveaxis(values, 0, -1)
    # 3: numbers of a palette, which are no brightness
    if values.ndim not in (2, 3) or values.dtype.kind not in 'buif' or photometric == 3:
        raise ValueError(f'is a TIFF file with axes {axes}, numbers of type {values.dtype} and photometric '
                         f'interpretation {photometric}: grey or bands of real numbers are needed')
    values = turn(values, int(orientation))
    if values.ndim == 2:
        if bands is None:
            return Stored(values, invert=photometric == 0)
        return Stored(choose_bands(values[:, :, None], bands), invert=photometric == 0)
    if bands is None and alpha and values.shape[2] in (2, 4):
        return Stored(values)
    return Stored(choose_bands(values, bands, colours=photometric == 2))


def turn(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an orientation of EXIF or TIFF, 1..8, to an array (H, W, ...)."""
    if orientation in (5, 6, 7, 8):
        values = np.swapaxes(values, 0, 1)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return values[::-1 if vertical else 1, ::-1 if horizontal else 1]


def read_deep_png(data: bytes) -> Optional[Stored]:
    """A PNG file of 16 bits with colours or alpha, of which Pillow keeps 8; None for every other file."""
    if data[:8] != b'\x89PNG\r\n\x1a\n' or data[24] != 16 or data[25] not in (2, 4, 6):
        return None
    import cv2
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise ValueError('cannot be decoded')
    return Stored(values[:, :, [2, 1, 0, 3][:values.shape[2]]])  # OpenCV: BGR, then alpha


def is_dicom(data: bytes) -> bool:
    """Whether the file has DICOM's mark."""
    return data[128:132] == b'DICM'


def read_dicom(data: bytes) -> Stored:
    """The first frame of a DICOM file: values after its modality rule (Hounsfield units of a CT), with the window that
    the file states; without one, all that its bits can hold.

    Raises:
        ValueError: If pydicom, or a package for the file's compression, is missing.
    """
    pydicom = _need('pydicom', 'a DICOM file')
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
    dataset = pydicom.dcmread(io.BytesIO(data))
    check_growth(int(dataset.Rows) * int(dataset.Columns) * int(dataset.get('SamplesPerPixel', 1)), data)
    try:
        values = pixel_array(dataset, index=0)
    except (RuntimeError, NotImplementedError) as error:
        text = ' '.join(str(error).split())
        raise ValueError(f"is a DICOM file whose compression cannot be read ({text}): pip install 'pylibjpeg[all]', "
                         'or write it uncompressed') from None
    if dataset.PhotometricInterpretation == 'PALETTE COLOR':
        values = pydicom.pixels.apply_color_lut(values, dataset)
    if values.ndim == 3:
        return Stored(values)
    low, high = (0, 2**dataset.BitsStored - 1)
    if dataset.PixelRepresentation:
        low, high = -2**(dataset.BitsStored - 1), 2**(dataset.BitsStored - 1) - 1
    invert = dataset.PhotometricInterpretation == 'MONOCHROME1'
    values, limits = apply_modality_lut(values, dataset), apply_modality_lut(np.array([low, high]), dataset)
    if 'WindowCenter' in dataset:
        centre, width = (float(np.atleast_1d(dataset[key].value)[0]) for key in ('WindowCenter', 'WindowWidth'))
        # DICOM PS3.3 C.11.2.1.2: linear from centre - 0.5 - (width - 1) / 2 on
        half = max((width - 1) / 2, 0.5)
        return Stored(values, (centre - 0.5 - half, centre - 0.5 + half), invert)
    if 'VOILUTSequence' in dataset:
        top = 2**int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        return Stored(apply_voi_lut(values, dataset), (0, top), invert)
    return Stored(values, (float(min(limits)), float(max(limits))), invert)


def read_numpy(data: bytes, bands: Optional[Sequence[int]]) -> Stored:
    """An array (H, W), (H, W, C) or, where C comes first and is at most 4, (C, H, W) from a ``.npy`` file or the only
    one of a ``.npz`` file; pickled objects are refused.

    Raises:
        ValueError: If the file holds something else.
    """
    if data[:2] == b'PK':
        found = read_arrays(data)
        if len(found) != 1:
            raise ValueError(f'holds {len(found)} arrays ({", ".join(list(found)[:5])}): one picture a file')
        values = next(iter(found.values()))
    else:
        check_array_header(io.BytesIO(data), len(data))
        values = np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    if values.dtype.kind not in 'buif' or values.ndim not in (2, 3) or not values.size:
        raise ValueError(f'holds an array of shape {values.shape} and type {values.dtype}: (height, width) or (height, '
                         'width, bands) of numbers is needed')
    if values.ndim == 2:
        return Stored(values if bands is None else choose_bands(values[:, :, None], bands))
    if values.shape[0] <= 4 < values.shape[2]:
        values = np.moveaxis(values, 0, -1)
    if bands is None and values.shape[2] == 4:
        return Stored(values)
    return Stored(choose_bands(values, bands))
