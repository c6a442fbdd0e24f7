"""Images of fetched packages as arrays."""

import gzip
import io
import json
import zlib
from typing import Callable, Dict, List

import numpy as np

from ..weights.guards import MAX_RATIO, SMALL
from . import fetch
from .sources import SOURCES

Say = Callable[[str], None]


def unpacked(data: bytes) -> bytes:
    """What a gzip file holds.

    Raises:
        FetchError: If it is damaged, or would grow beyond reason.
    """
    limit = max(SMALL, MAX_RATIO * len(data))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise fetch.FetchError(f'damaged gzip data: {error}') from None
    if len(content) > limit:
        raise fetch.FetchError(f'a gzip bomb: {len(data)} bytes unpack to more than {limit}')
    return content


def quickdraw_classes(say: Say = print) -> Dict[str, np.ndarray]:
    """The drawings (n, 28, 28) uint8 of the 20 classes that the data set quickdraw20 has."""
    source = SOURCES['quickdraw']
    path = fetch.archive(source, say)
    suffix = '.ndjson.gz'
    chosen = sorted(name for name, _ in fetch.members(source, path))[::17][:20]
    drawings: Dict[str, np.ndarray] = {}
    for name, read in fetch.members(source, path):
        if name in chosen:
            rows = [json.loads(line) for line in unpacked(read()).decode().splitlines()]
            drawings[name[:-len(suffix)]] = 255 - np.rint(255 * np.asarray(rows, np.float32)).astype(np.uint8).reshape(
                -1, 28, 28)
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
    images = 255 - np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return [images[bunch.target == i] for i in range(10)]
