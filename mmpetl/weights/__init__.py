"""Weight files in and out: opening them safely, mapping published formats to the names of the backbones, adapter files."""

from .errors import WeightFileError
from .fingerprint import fingerprint
from .io import atomic_write, load_file, write_json

__all__ = ['WeightFileError', 'atomic_write', 'fingerprint', 'load_file', 'write_json']
