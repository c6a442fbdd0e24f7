"""What hostile files are made of; loaded by path, tests are no package."""

import json
import struct

from safetensors.torch import save

import mmpetl
from mmpetl.weights import adapter_file


def command(marker):
    """A shell command that leaves a trace."""
    return f'touch {marker}'


def write_header(source, target, change):
    """Copy an adapter file with another header, written past every check of :func:`adapter_file.save`."""
    tensors, header = adapter_file.load(source)
    change(header)
    target.write_bytes(save(tensors, {adapter_file.METADATA_KEY: json.dumps(header)}))
    return target


def safetensors_with(path, header_bytes, body=b''):
    """A file of the safetensors layout with any bytes as its header."""
    path.write_bytes(struct.pack('<Q', len(header_bytes)) + header_bytes + body)
    return path


__all__ = ['command', 'mmpetl', 'safetensors_with', 'write_header']
