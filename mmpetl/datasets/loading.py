"""Load an image from a file or from a member of a zip file (``archive.zip@member``)."""

import os
import zipfile
from typing import Any, Dict, Optional, Tuple

import mmcv
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio

from ..registry import TRANSFORMS

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
        return fileio.get(path, backend_args=backend_args)
    key = (os.getpid(), archive)
    if key not in _ARCHIVES:
        _ARCHIVES[key] = zipfile.ZipFile(archive)
    try:
        return _ARCHIVES[key].read(member)
    except KeyError:
        raise FileNotFoundError(f'{archive} has no member {member!r}') from None


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` that also reads ``archive.zip@member`` and names the file it cannot decode.

    Decodes with Pillow by default, as the papers do: EXIF orientation is applied and every mode becomes three channels.

    Args:
        imdecode_backend: See :class:`mmcv.transforms.LoadImageFromFile`.
        **kwargs: Its other arguments.
    """

    def __init__(self, imdecode_backend: str = 'pillow', **kwargs: Any) -> None:
        super().__init__(imdecode_backend=imdecode_backend, **kwargs)

    def transform(self, results: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """Add ``img`` (H, W, 3) uint8 in BGR, ``img_shape`` and ``ori_shape``.

        Raises:
            ValueError: If the file cannot be decoded.
        """
        path = results['img_path']
        data = read_bytes(path, self.backend_args)
        try:
            image = mmcv.imfrombytes(data, flag=self.color_type, backend=self.imdecode_backend) if data else None
        except OSError as error:  # Pillow's UnidentifiedImageError and truncated files
            raise ValueError(f'{path} cannot be decoded ({error}): fetch the file again') from None
        if image is None:
            raise ValueError(f'{path} cannot be decoded: fetch the file again')
        results['img'] = image.astype('float32') if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results
