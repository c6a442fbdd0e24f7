# SPDX-License-Identifier: Apache-2.0
"""Images of fetched packages as arrays."""

import gzip
import io
import zlib
from typing import Callable, Dict, List

import numpy as np

from ..names import printable
from ..weights.guards import MAX_RATIO, SMALL, parse_json
from . import fetch
from .sources import SOURCES

Say = Callable[[str], None]


def unpacked(data: bytes, name: str) -> bytes:
    """What the gzip file ``name`` holds, of which ``data`` is the content.

    Raises:
        FetchError: If it is damaged, or would grow beyond reason.
    """
    limit = max(SMALL, MAX_RATIO * len(data))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise fetch.FetchError(f'{printable(name)}: damaged gzip data: {error}') from None
    if len(content) > limit:
        raise fetch.FetchError(f'{printable(name)}: a gzip bomb: {len(data)} bytes unpack to more than {limit}')
    return content


def quickdraw_classes(say: Say = print) -> Dict[str, np.ndarray]:
    """The drawings (n, 28, 28) uint8 of the 20 classes that the data set quickdraw20 has."""
    source = SOURCES['quickdraw']
    path = fetch.archive(source, say)
    suffix = '.ndjson.gz'
    chosen = sorted(name for name, _ in fetch.members(source, path))[::17][:20]  # from all over the alphabet
    drawings: Dict[str, np.ndarray] = {}
    for name, read in fetch.members(source, path):
        if name in chosen:
            content = unpacked(read(), f'{path.name}: {name}')
            try:
                table = np.asarray([parse_json(line) for line in content.splitlines()], np.float32)
                # ink is 1 there, and dark here
                drawings[name[:-len(suffix)]] = 255 - np.rint(255 * table).astype(np.uint8).reshape(-1, 28, 28)
            except (TypeError, ValueError) as error:
                raise fetch.FetchError(f'{path.name}: {printable(name)} holds no drawings: {error}') from None
    return drawings


def sklearn_digits() -> List[np.ndarray]:
    """The digits that scikit-learn ships, dark on white: one (n, 8, 8) uint8 array per class, in their order there.

    Raises:
        FetchError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise fetch.FetchError(
            'the digits come with scikit-learn, which is not installed. Run: pip install scikit-learn') from None
    bunch = load_digits()
    images = 255 - np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # ink is up to 16 there
    return [images[bunch.target == i] for i in range(10)]
