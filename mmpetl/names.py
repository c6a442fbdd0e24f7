# SPDX-License-Identifier: Apache-2.0
"""Names that come out of files, and folders on the command line: what they may do as paths, and how they are
printed and written.

A name in an archive, a list, a suite or a header was chosen by whoever made the file. Before it becomes a path one of
the two functions below decides; before it is shown it goes through the function of its medium.
"""

import argparse
import os
import re
import shlex

#: Longest name of one file or folder, in bytes, that common file systems take, less room for suffixes.
MAX_NAME = 200
_DRIVE = re.compile(r'^[A-Za-z]:')
#: Control characters, and marks that turn the direction in which a name is shown.
_CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]')
#: Names that mean devices on Windows, whatever their suffix.
_DEVICES = re.compile(r'^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$', re.IGNORECASE)


# -- as paths ---------------------------------------------------------------------------------------------------------


def is_escape(name: str) -> bool:
    """Whether a name taken from a file would leave its folder if it were used as a path."""
    parts = re.split(r'[\\/]', name)
    return not name or '\0' in name or '..' in parts or name[0] in '/\\' or bool(_DRIVE.match(name))


def plain_name(name: object, what: str) -> str:
    """A name from data that may become one file or folder.

    Args:
        name: What the data say.
        what: What it names and where it was read, to open the message: "suite.json: task".

    Returns:
        str: The same name.

    Raises:
        ValueError: If it is no text, empty, too long, leads elsewhere, means a device, or holds control
            characters.
    """
    if (not isinstance(name, str) or re.search(r'[\\/]', name) or is_escape(name) or name != name.strip(' ')
            or name == '.' or name[0] in '-~' or _DEVICES.match(name) or _CONTROL.search(name)
            or len(name.encode(errors='replace')) > MAX_NAME):
        raise ValueError(f'{what} {name!r:.100} cannot name a file or folder: use letters, digits, . - _')
    return name


def path_below(name: object, what: str) -> str:
    """A relative path from data that stays below the folder to which it will be joined.

    Args:
        name: What the data say; parts are separated by / or \\.
        what: What it names and where it was read, to open the message.

    Returns:
        str: The same path.

    Raises:
        ValueError: If it is absolute, climbs by '..', or holds control characters.
    """
    if not isinstance(name, str) or is_escape(name) or name[0] == '~' or _CONTROL.search(name):
        raise ValueError(f'{what} {name!r:.100} leads out of its folder: give a path below it, without ..')
    return name


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


# -- as text ----------------------------------------------------------------------------------------------------------


def printable(text: object) -> str:
    """Text for a terminal or a log, in one line: control characters, terminal escapes and marks that turn the direction
    of writing are shown as ``\\x1b``, ``\\u202e``."""
    return ''.join(
        c if c.isprintable() else c.encode('unicode_escape', 'surrogatepass').decode() for c in str(text))


def markdown_text(text: object) -> str:
    """Text for Markdown and for the HTML that is made of it: nothing in it is a tag, a link, an image, code or the end
    of a cell."""
    safe = printable(text).replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    return re.sub(r'([\\`*\[\]|])', r'\\\1', safe)


def csv_cell(value: object) -> object:
    """A cell of a CSV file: text that a spreadsheet would take for a formula gets a quotation mark in front."""
    if not isinstance(value, str):
        return value
    value = printable(value)
    return f"'{value}" if value.lstrip()[:1] in ('=', '+', '-', '@') else value


_LATEX = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}'}


def latex_text(text: object) -> str:
    """Text for LaTeX: nothing in it is a command."""
    return ''.join(_LATEX.get(c, f'\\{c}' if c in '&%_#${}' else c) for c in printable(text))


# -- as commands ------------------------------------------------------------------------------------------------------


def command_here(command: str) -> str:
    """A command ``'python tools/X.py'`` as it runs here: with the path of the installed script where the current folder
    is no checkout; others as they are."""
    script = command.removeprefix('python ')
    if script == command or os.path.exists(script):
        return command
    package = os.path.dirname(os.path.abspath(__file__))
    places = (os.path.join(package, '.mim', script), os.path.join(os.path.dirname(package), script))
    return next((f'python {shlex.quote(place)}' for place in places if os.path.exists(place)), command)
