# SPDX-License-Identifier: Apache-2.0
"""One HTML file that holds everything: tables that sort, pictures as data, texts; nothing is loaded from elsewhere.

Whatever stands in it comes from files (class names, names of pictures, errors, configs) and is text, never markup: the
template engine escapes it, and a policy in the page lets no script run but its own.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Optional, Sequence

from ..names import printable
from ..version import __version__
from .report import MISSING

PAGE = Path(__file__).parent / 'page'


@dataclass
class Cell:
    """A cell of a table: its text, the number that it is sorted by, and how strongly it is shaded (0 to 1)."""
    text: str
    value: Optional[float] = None
    shade: Optional[float] = None


@dataclass
class Table:
    """A table; ``kind`` is 'sortable', 'matrix' (shaded cells, upright headings) or 'plain'."""
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ''
    kind: str = 'sortable'


@dataclass
class Picture:
    """A picture as a ``data:`` address, and what it shows."""
    uri: str
    caption: str


@dataclass
class Sample:
    """A picture of the test data with its true and its predicted class."""
    uri: str
    name: str
    truth: str
    guess: str
    note: str


@dataclass
class Text:
    """A text of many lines that opens by a click."""
    title: str
    text: str
    open: bool = False


@dataclass
class Section:
    """A part of a page, in the order: note, pictures, tables, samples, texts; ``wide``: a sample has several pictures.
    """
    title: str
    note: str = ''
    pictures: List[Picture] = field(default_factory=list)
    tables: List[Table] = field(default_factory=list)
    samples: List[Sample] = field(default_factory=list)
    texts: List[Text] = field(default_factory=list)
    wide: bool = False


def number(value: Optional[float], form: str = '.2f') -> Cell:
    """A cell of a number; '--' where there is none."""
    return Cell(MISSING) if value is None else Cell(format(value, form), float(value))


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of a picture as an address, for example of kind 'image/png'."""
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def _finalize(value: Any) -> Any:
    """What the engine puts out: text in one line, without control characters and marks that turn the direction."""
    return printable(value) if type(value) is str else value


def _lines(text: str) -> Any:
    """Text of many lines, each made printable; escaped here, as it then counts as done."""
    from markupsafe import Markup, escape
    return Markup('\n').join(escape(printable(line)) for line in text.splitlines())


def render(title: str, sections: Sequence[Section]) -> str:
    """The page.

    Args:
        title: Its heading.
        sections: Its parts.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    engine = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                         lstrip_blocks=True, finalize=_finalize)
    engine.filters['lines'] = _lines
    script = (PAGE / 'page.js').read_text(encoding='utf-8')
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (PAGE / 'page.css').read_text(encoding='utf-8')
    return engine.get_template('page.html').render(title=title, sections=sections, version=__version__, style=style,
                                                   script=script, digest=digest)
