# SPDX-License-Identifier: Apache-2.0
"""Every kind of picture file keeps its values: known numbers in, known numbers out."""

import io
import os
import re

import cv2
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image, ImageOps

from mmpetl.datasets import LoadImage
from mmpetl.datasets.pictures import decode_picture

#: 3 x 4: every test sees that height and width are not swapped
GREY = np.array([[0, 1, 17, 64], [100, 127, 128, 129], [200, 253, 254, 255]], np.uint8)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], -1)
ALPHA = np.array([[0, 255, 128, 64], [255, 255, 0, 1], [254, 255, 255, 200]], np.uint8)
WIDE = GREY.astype(np.uint16) * 257
DEEP = RGB.astype(np.uint16) * 257
ON_WHITE = np.rint((RGB * (ALPHA[..., None] / 255.)) + 255 * (1 - ALPHA[..., None] / 255.)).astype(np.uint8)
GREY_ON_WHITE = np.rint(GREY * (ALPHA / 255.) + 255 * (1 - ALPHA / 255.)).astype(np.uint8)


def pil(array, form='PNG', mode=None, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    if mode:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def tif(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{'photometric': 'minisblack', **options})
    return file.getvalue()


def png(array):
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    array = array[..., order[array.shape[2]]] if array.ndim == 3 else array
    return cv2.imencode('.png', array)[1].tobytes()


def grey_alpha_16():
    """A PNG of 16-bit grey with alpha, which neither Pillow nor OpenCV writes."""
    import struct
    import zlib
    rows = b''.join(b'\0' + np.stack([row, a], -1).astype('>u2').tobytes() for row, a in zip(WIDE, ALPHA.astype(int) * 257))
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', 4, 3, 16, 4, 0, 0, 0)), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body)) for name, body in chunks)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def palette(transparency=None, form='PNG'):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).convert('L')
    image = Image.frombytes('P', image.size, image.tobytes())
    image.putpalette(RGB.reshape(-1).tolist())
    return pil(image, form, **({} if transparency is None else dict(transparency=transparency)))


def rotated(form, orientation):
    """A picture that is stored turned, and says so."""
    image = Image.fromarray(RGB)
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270,
            2: Image.Transpose.FLIP_LEFT_RIGHT}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return pil(image.transpose(back), form, exif=exif)


def dicom(values, photometric='MONOCHROME2', bits=16, slope=None, window=None, **more):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, '1.2.840.10008.5.1.4.1.1.7'
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(None, {}, file_meta=meta, preamble=b'\0' * 128)
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    if values.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation, data.PixelRepresentation = photometric, int(values.dtype.kind == 'i')
    data.BitsAllocated, data.BitsStored, data.HighBit = values.itemsize * 8, bits, bits - 1
    if slope:
        data.RescaleSlope, data.RescaleIntercept = slope
    if window:
        data.WindowCenter, data.WindowWidth = window
    data.PixelData = values.tobytes()
    for key, value in more.items():
        setattr(data, key, value)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def big_endian_pgm():
    return b'P5 4 3 65535\n' + WIDE.astype('>u2').tobytes()


CMYK = Image.fromarray(RGB).convert('CMYK')
TWELVE = (GREY.astype(np.uint16) * 16 + GREY // 16)  # 0..4095
HU = np.array([[-1000, -500, 0, 40], [80, 400, 1000, 3000], [-160, 240, 100, -100]], np.int16)
HU_SHOWN = np.rint(((HU + 160.) * 255 / 400).clip(0, 255)).astype(np.uint8)

#: name -> (file, options, what is shown: grey (H, W) or RGB (H, W, 3))
MODES = {
    '1 bit PNG': (lambda: pil(GREY > 100, mode='1'), {}, np.where(GREY > 100, 255, 0)),
    '8-bit grey PNG': (lambda: pil(GREY), {}, GREY),
    '8-bit grey BMP': (lambda: pil(GREY, 'BMP'), {}, GREY),
    'RGB PNG': (lambda: pil(RGB), {}, RGB),
    'RGB WebP': (lambda: pil(RGB, 'WEBP', lossless=True), {}, RGB),
    'RGB TIFF': (lambda: pil(RGB, 'TIFF'), {}, RGB),
    'palette PNG': (palette, {}, RGB),
    'palette GIF': (lambda: palette(form='GIF'), {}, RGB),
    'palette PNG, one transparent': (lambda: palette(5), {}, np.where(
        (np.arange(12) == 5).reshape(3, 4, 1), 255, RGB)),
    'palette PNG, alpha table': (lambda: palette(bytes(ALPHA.reshape(-1).tolist())), {}, ON_WHITE),
    'grey PNG, one transparent': (lambda: pil(GREY, transparency=127), {}, np.where(GREY == 127, 255, GREY)),
    'RGB PNG, one transparent': (lambda: pil(RGB, transparency=tuple(RGB[0, 3].tolist())), {}, np.where(
        (RGB == RGB[0, 3]).all(-1, keepdims=True), 255, RGB)),
    'LA PNG': (lambda: pil(np.dstack([GREY, ALPHA])), {}, GREY_ON_WHITE),
    'RGBA PNG': (lambda: pil(np.dstack([RGB, ALPHA])), {}, ON_WHITE),
    'RGBA WebP': (lambda: pil(np.dstack([RGB, ALPHA]), 'WEBP', lossless=True, exact=True), {}, ON_WHITE),
    'RGBA TIFF': (lambda: pil(np.dstack([RGB, ALPHA]), 'TIFF'), {}, ON_WHITE),
    'RGBA on black': (lambda: pil(np.dstack([RGB, ALPHA])), dict(background=(0, 0, 0)),
                      np.rint(RGB * (ALPHA[..., None] / 255.))),
    'RGBA, alpha left out': (lambda: pil(np.dstack([RGB, ALPHA])), dict(background=None), RGB),
    'LA, alpha left out': (lambda: pil(np.dstack([GREY, ALPHA])), dict(background=None), GREY),
    'CMYK TIFF': (lambda: pil(CMYK, 'TIFF'), {}, np.asarray(CMYK.convert('RGB'))),
    '16-bit grey PNG': (lambda: pil(WIDE), {}, GREY),
    '16-bit grey PNG, one transparent': (lambda: pil(WIDE, transparency=127 * 257), {}, np.where(GREY == 127, 255, GREY)),
    '16-bit grey and alpha PNG': (grey_alpha_16, {}, GREY_ON_WHITE),
    '16-bit RGB PNG': (lambda: png(DEEP), {}, RGB),
    '16-bit RGBA PNG': (lambda: png(np.dstack([DEEP, ALPHA.astype(np.uint16) * 257])), {}, ON_WHITE),
    '16-bit grey TIFF': (lambda: pil(WIDE, 'TIFF'), {}, GREY),
    '16-bit grey TIFF, big-endian': (lambda: tif(WIDE.astype('>u2'), byteorder='>'), {}, GREY),
    '16-bit grey TIFF, compressed': (lambda: tif(WIDE, compression='zlib'), {}, GREY),
    '16-bit grey TIFF, LZW': (lambda: tif(WIDE, compression='lzw'), {}, GREY),
    '16-bit grey TIFF, white is 0': (lambda: tif(WIDE, photometric='miniswhite'), {}, 255 - GREY),
    '8-bit grey TIFF, white is 0': (lambda: tif(GREY, photometric='miniswhite'), {}, 255 - GREY),
    '16-bit RGB TIFF': (lambda: tif(DEEP, photometric='rgb'), {}, RGB),
    '16-bit RGB TIFF, planes': (lambda: tif(np.moveaxis(DEEP, -1, 0).copy(), photometric='rgb', planarconfig='separate'), {}, RGB),
    '16-bit RGBA TIFF': (lambda: tif(np.dstack([DEEP, ALPHA.astype(np.uint16) * 257]), photometric='rgb', extrasamples=['unassalpha']), {}, ON_WHITE),
    '16-bit grey PGM': (big_endian_pgm, {}, GREY),
    '16-bit grey JPEG 2000': (lambda: pil(WIDE, 'JPEG2000'), {}, GREY),
    '12 bits in 16, window': (lambda: pil(TWELVE), dict(window=(0, 4095)), np.rint(TWELVE / 4095 * 255)),
    'int32 TIFF': (lambda: pil(WIDE.astype(np.int32), 'TIFF'), {}, GREY),
    'uint32 TIFF': (lambda: tif(WIDE.astype(np.uint32)), {}, GREY),
    'uint32 TIFF, window': (lambda: tif(GREY.astype(np.uint32) * 2**24), dict(window=(0, 255 * 2**24)), GREY),
    'int16 TIFF, window': (lambda: tif(HU), dict(window=(-160, 240)), HU_SHOWN),
    'float TIFF': (lambda: pil((GREY / 255).astype(np.float32), 'TIFF'), {}, GREY),
    'float TIFF, window': (lambda: pil(GREY.astype(np.float32), 'TIFF'), dict(window=(0, 255)), GREY),
    'float TIFF with NaN, window': (lambda: tif(np.where(GREY == 17, np.nan, GREY).astype(np.float32)),
                                    dict(window=(0, 255)), np.where(GREY == 17, 0, GREY)),
    'half float TIFF': (lambda: tif((GREY / 255).astype(np.float16)), {}, GREY),
    'double TIFF': (lambda: tif(GREY / 255), {}, GREY),
    'five bands TIFF, 8 bits': (lambda: tif(np.dstack([RGB, RGB[..., :2]]), planarconfig='contig'), dict(bands=(3, 2, 1)), RGB[..., ::-1]),
    'five bands TIFF, 16 bits, planes': (lambda: tif(np.moveaxis(np.dstack([DEEP, DEEP[..., :2]]), -1, 0).copy(), planarconfig='separate'), dict(bands=(5, 4, 3)), RGB[..., [1, 0, 2]]),
    'one of five bands': (lambda: tif(np.dstack([RGB, RGB[..., :2]]), planarconfig='contig'), dict(bands=(3, )), RGB[..., 2]),
    'RGB and infrared TIFF': (lambda: tif(np.dstack([RGB, GREY]), photometric='rgb', extrasamples=['unspecified']), {}, RGB),
    'first page of a TIFF stack': (lambda: tif(np.stack([WIDE, WIDE[::-1]])), {}, GREY),
    'first frame of a GIF': (lambda: pil(Image.fromarray(GREY), 'GIF', save_all=True, append_images=[Image.fromarray(255 - GREY)]), {}, GREY),
    'EXIF 6, PNG': (lambda: rotated('PNG', 6), {}, RGB),
    'EXIF 8, TIFF': (lambda: rotated('TIFF', 8), {}, RGB),
    'EXIF 3, WebP': (lambda: pil(Image.open(io.BytesIO(rotated('PNG', 3))), 'WEBP', lossless=True, exif=Image.open(io.BytesIO(rotated('PNG', 3))).getexif()), {}, RGB),
    'DICOM, 12 bits': (lambda: dicom(TWELVE, bits=12), {}, np.rint(TWELVE / 4095 * 255)),
    'DICOM, white is 0': (lambda: dicom(TWELVE, 'MONOCHROME1', bits=12), {}, 255 - np.rint(TWELVE / 4095 * 255)),
    'DICOM, 8-bit RGB': (lambda: dicom(RGB, 'RGB', bits=8), {}, RGB),
    'DICOM, CT with its window': (lambda: dicom((HU + 1024).astype(np.uint16), bits=12, slope=(1, -1024), window=(40.5, 401)), {}, HU_SHOWN),
    'DICOM, CT with our window': (lambda: dicom(HU, slope=(1, 0)), dict(window=(-160, 240)), HU_SHOWN),
    'NumPy uint8': (lambda: npy(RGB), {}, RGB),
    'NumPy, channels first': (lambda: npy(np.moveaxis(np.tile(RGB, (2, 2, 1)), -1, 0)), {}, np.tile(RGB, (2, 2, 1))),
    'NumPy float': (lambda: npy(RGB / 255), {}, RGB),
    'NumPy bool': (lambda: npy(GREY > 100), {}, np.where(GREY > 100, 255, 0)),
    'NumPy uint16 of a .npz': (lambda: npz(picture=WIDE), {}, GREY),
}  # yapf: disable


@pytest.mark.parametrize('name', MODES)
def test_values(name, tmp_path):
    make, options, want = MODES[name]
    data = make()
    want = np.asarray(want)
    want = want if want.ndim == 3 else np.stack([want] * 3, -1)
    assert np.array_equal(decode_picture(data, **options), want)
    path = tmp_path / 'picture'
    path.write_bytes(data)
    # the rules are the same whichever decoder the config names
    for backend in ('pillow', 'cv2'):
        found = LoadImage(backend, **options)(dict(img_path=str(path)))
        assert found['img'].dtype == np.uint8 and np.array_equal(found['img'], want[..., ::-1]), backend
        assert found['img_shape'] == found['ori_shape'] == want.shape[:2]


def test_enough_modes():
    assert len(MODES) >= 60


def test_jpegs_stay_right(tmp_path):
    """Lossy: compared with Pillow's own reading, upright, CMYK with Adobe's inverted values included."""
    big = np.repeat(np.repeat(RGB, 16, 0), 16, 1)
    files = dict(rgb=pil(big, 'JPEG'), grey=pil(big[..., 0], 'JPEG'), cmyk=pil(Image.fromarray(big).convert('CMYK'), 'JPEG'))
    exif = Image.Exif()
    exif[0x0112] = 6
    files['turned'] = pil(big, 'JPEG', exif=exif)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB'))[..., ::-1]
        for backend in ('pillow', 'cv2'):
            got = LoadImage(backend)(dict(img_path=str(tmp_path / name)))['img']
            assert got.shape == want.shape and np.abs(got.astype(int) - want).max() <= (0 if backend == 'pillow' else 6), name
    flat = LoadImage(color_type='color_ignore_orientation')(dict(img_path=str(tmp_path / 'turned')))['img']
    assert flat.shape == big.shape
    assert LoadImage(color_type='grayscale')(dict(img_path=str(tmp_path / 'rgb')))['img'].shape == big.shape[:2]


REFUSED = {
    '12 bits in 16': (lambda: pil(TWELVE), {}, ('whole numbers from 0 to 4095', 'window=')),
    'int32, negative': (lambda: tif(HU.astype(np.int32)), {}, ('from -1000 to 3000', 'outside 0..65535', 'window=')),
    'uint32, large': (lambda: tif(GREY.astype(np.uint32) * 2**24), {}, ('outside 0..65535', 'window=')),
    'int32 that holds 8 bits': (lambda: tif(GREY.astype(np.int32)), {}, ('0 to 255', 'window=')),
    'int8': (lambda: tif((GREY.astype(int) - 128).astype(np.int8)), {}, ('-128 to 127', 'window=')),
    'float 0..255': (lambda: pil(GREY.astype(np.float32), 'TIFF'), {}, ('numbers from 0 to 255', 'outside 0..1', 'window=')),
    'float with NaN': (lambda: tif(np.full((3, 4), np.nan, np.float32)), {}, ('NaN', 'window=')),
    'complex': (lambda: tif(GREY.astype(np.complex64)), {}, ('complex64', )),
    '13 bands': (lambda: tif(np.repeat(GREY[..., None], 13, 2), planarconfig='contig'), {}, ('13 bands', 'bands=(3, 2, 1)')),
    'two bands, no alpha': (lambda: tif(np.dstack([GREY, GREY]), planarconfig='contig'), {}, ('2 bands', 'bands=')),
    'the second band of grey TIFF': (lambda: tif(GREY), dict(bands=(2, )), ('has 1 band,', 'band 2')),
    'the second band of a grey array': (lambda: npy(GREY), dict(bands=(2, )), ('has 1 band,', 'band 2')),
    'a band too far': (lambda: tif(np.repeat(GREY[..., None], 13, 2), planarconfig='contig'), dict(bands=(1, 2, 14)), ('13 bands', 'band 14')),
    'NumPy objects': (lambda: npy(np.array([{}, 1], object)), {}, ('cannot be decoded', 'object array')),
    'NumPy text': (lambda: npy(np.array(['a', 'b'])), {}, ('<U1', '(height, width)')),
    'NumPy video': (lambda: npy(np.zeros((2, 5, 6, 3), np.uint8)), {}, ('(2, 5, 6, 3)', '(height, width)')),
    'two arrays': (lambda: npz(a=GREY, b=GREY), {}, ('2 arrays', 'a, b')),
    'a zip file': (lambda: b'PK\x03\x04' + b'\0' * 40, {}, ('cannot be decoded', )),
    'half a PNG': (lambda: pil(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[:3000], {}, ('cannot be decoded', )),
    'half a 16-bit RGB PNG': (lambda: png(DEEP)[:60], {}, ('cannot be decoded', )),
    'half a TIFF': (lambda: tif(np.dstack([DEEP, DEEP]))[:200], {}, ('cannot be decoded', )),
    'half a DICOM file': (lambda: dicom(TWELVE)[:-9], {}, ('cannot be ', )),
    'compressed DICOM': (lambda: _compressed(), {}, ('compression', 'pip install')),
    'text': (lambda: b'<html>not found</html>', {}, ('cannot be decoded', 'no picture file')),
    'nothing': (lambda: b'', {}, ('cannot be decoded', 'empty')),
}  # yapf: disable


def _compressed():
    """A DICOM file whose video frames no package reads as pictures."""
    from pydicom.encaps import encapsulate
    data = pydicom.dcmread(io.BytesIO(dicom(TWELVE, bits=12)))
    data.file_meta.TransferSyntaxUID = pydicom.uid.HEVCMP51
    data.PixelData = encapsulate([b'\0' * 16])
    data['PixelData'].VR = 'OB'
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_one_line(name, tmp_path):
    make, options, words = REFUSED[name]
    path = tmp_path / 'the file.png'
    path.write_bytes(make())
    for backend in ('pillow', 'cv2'):
        with pytest.raises(ValueError) as caught:
            LoadImage(backend, **options)(dict(img_path=str(path)))
        text = str(caught.value)
        assert text.startswith(str(path)) and '\n' not in text and all(w in text for w in words), text


@pytest.mark.parametrize('package, make', [('tifffile', lambda: tif(DEEP, photometric='rgb')),
                                           ('pydicom', lambda: dicom(TWELVE, bits=12))])
def test_missing_reader_says_what_to_install(package, make, tmp_path, monkeypatch):
    import importlib
    (tmp_path / 'a').write_bytes(make())
    real = importlib.import_module

    def without(name, *args):
        if name == package:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, 'import_module', without)
    with pytest.raises(ValueError, match=f"/a is a .*{package} is needed: pip install 'mmpetl\\[readers\\]'"):
        LoadImage()(dict(img_path=str(tmp_path / 'a')))


@pytest.mark.parametrize('key, value', [('background', (1, 2)), ('background', (0, 0, 300)), ('window', (5, 5)), ('window', (1, )),
                                        ('window', (0, float('nan'))), ('bands', (0, 1, 2)), ('bands', (1, 2))])
def test_bad_arguments(key, value):
    with pytest.raises(ValueError, match=re.escape(f'LoadImage: {key}={value!r}')):
        LoadImage(**{key: value})


def test_damaged_exif_beside_a_whole_picture(tmp_path):
    data = pil(RGB, 'PNG', exif=b'Exif\0\0II*\0\xff\xff\xff\x7f' + b'\xff' * 20)
    assert np.array_equal(decode_picture(data), RGB)


def test_two_classes_of_16_bits_stay_apart(tmp_path):
    """White or black with upstream's Pillow loader, whatever the values."""
    found = []
    for value in (20000, 50000):
        path = os.path.join(tmp_path, f'{value}.png')
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(path)
        found.append(int(LoadImage()(dict(img_path=path))['img'].mean()))
    assert found == [78, 195]
