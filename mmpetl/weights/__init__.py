# SPDX-License-Identifier: Apache-2.0
"""Weight files in and out: opening them safely, mapping published formats to the names of the backbones, adapter
files."""

from .atomic import atomic_write, write_json
from .convert import convert, detect
from .errors import WeightFileError
from .fingerprint import fingerprint
from .io import load_file
from .match_report import Report

__all__ = ['Report', 'WeightFileError', 'atomic_write', 'convert', 'detect', 'fingerprint', 'load_file', 'write_json']
