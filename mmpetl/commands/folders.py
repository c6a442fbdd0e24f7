# SPDX-License-Identifier: Apache-2.0
"""Folders on the command line, refused by argparse with the option's name."""

import argparse
import os


def folder(text: str) -> str:
    """A type for argparse: a folder, which need not be there yet; ``~`` is expanded."""
    path = os.path.expanduser(text)
    if os.path.lexists(path) and not os.path.isdir(path):
        kind = 'a link that leads nowhere' if os.path.islink(path) and not os.path.exists(path) else 'a file'
        raise argparse.ArgumentTypeError(f'{text!r} is {kind}: name a folder')
    return path
