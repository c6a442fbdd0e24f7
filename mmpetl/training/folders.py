# SPDX-License-Identifier: Apache-2.0
"""Folders on the command line, refused by argparse with the option's name."""

import argparse
import os


def folder(text: str) -> str:
    """A type for argparse: a folder, which need not be there yet; ``~`` is expanded."""
    path = os.path.expanduser(text)
    there = path.rstrip(os.sep) or path
    while there and not os.path.lexists(there):  # the part of the path that is there
        there = os.path.dirname(there)
    if there and not os.path.isdir(there):
        kind = 'a link that leads nowhere' if os.path.islink(there) and not os.path.exists(there) else 'a file'
        what = 'is' if there == path.rstrip(os.sep) else f'lies in {there!r}, which is'
        raise argparse.ArgumentTypeError(f'{text!r} {what} {kind}: name a folder')
    return path
