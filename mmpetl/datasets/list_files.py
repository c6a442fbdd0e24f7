# SPDX-License-Identifier: Apache-2.0
"""List and class files as people and their programs write them: UTF-8 or UTF-16, with or without a byte order mark,
lines of any system, separated by blanks, tabs, commas or semicolons, quoted or not, with or without a header."""

import codecs
import csv
import os
import re
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..sites import nearest
from ..weights.reading import MAX_LIST, read_bytes

#: Column names of a header, in small letters, that mean the file and the label.
PATH_COLUMNS = ('path', 'image', 'images', 'img', 'img_path', 'image_path', 'filename', 'file', 'file_name', 'filepath',
                'file_path', 'image_name', 'video', 'video_path', 'video_name', 'name')
LABEL_COLUMNS = ('label', 'labels', 'class', 'class_id', 'category', 'category_id', 'target', 'class_name', 'label_id',
                 'gt_label', 'y')
# UTF-32 before UTF-16, whose little-endian mark is the beginning of the other.
_MARKS = ((codecs.BOM_UTF8, 'utf-8'), (codecs.BOM_UTF32_LE, 'utf-32-le'), (codecs.BOM_UTF32_BE, 'utf-32-be'),
          (codecs.BOM_UTF16_LE, 'utf-16-le'), (codecs.BOM_UTF16_BE, 'utf-16-be'))
WHOLE = re.compile(r'[+-]?\d+(\.0+)?')
_SEVERAL = re.compile(r'[\s,;]"?(\d+\s*[,;|]\s*\d+(\s*[,;|]\s*\d+)*)"?$')


class Row(NamedTuple):
    """One line of a list.

    Attributes:
        name: Path of the file as it is written.
        label: Class id, -1 where the list has no labels.
        line: Number of the line, from 1 on.
        more: The other columns of a list with a header.
    """
    name: str
    label: int
    line: int
    more: Dict[str, str] = {}


def read_lines(path: str) -> List[str]:
    """The lines of a text file, without line ends.

    Raises:
        ValueError: If it is not text in UTF-8 or UTF-16; the message gives file and line.
    """
    data = read_bytes(path, MAX_LIST)
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b'', 'utf-8'))
    if not mark and b'\0' in data[:200]:  # UTF-16 without its mark: the high bytes of plain letters are 0
        encoding = 'utf-16-le' if data[1:2] == b'\0' else 'utf-16-be'
    try:
        text = data[len(mark):].decode(encoding)
    except UnicodeDecodeError as error:
        line = data[:len(mark) + error.start].count(b'\n') + 1
        raise ValueError(f'{path}, line {line}: byte {error.object[error.start]:#04x} is not {encoding.upper()} text: '
                         'save the file as UTF-8') from None
    if '\0' in text:
        raise ValueError(f'{path} is no text file: a list has lines with a path and a label')
    # str.splitlines would also cut names at rarer marks, such as a line separator (U+2028)
    return re.split('\r\n|\n|\r', text)


def _absent(path: str) -> str:
    if os.path.isdir(path):
        return 'is a folder'
    return 'is no file on a disk' if os.path.exists(path) else 'does not exist'


def read_names(path: str) -> Tuple[str, ...]:
    """A class file: one name a line; blank lines do not count.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it names no class, or one twice.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'class file {path} {_absent(path)}: name a text file with one class a line')
    found: Dict[str, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        name = line.strip()
        if name in found:
            raise ValueError(f'{path}, line {number}: the class {name!r} is already in line {found[name]}: '
                             'give each a name of its own')
        if name:
            found[name] = number
    if not found:
        raise ValueError(f'{path} names no class: write one name a line')
    return tuple(found)


class Line(NamedTuple):
    """One line of a list as it is written; ``label`` is text, '' where there are no labels."""
    name: str
    label: str
    line: int
    more: Dict[str, str] = {}


def read_texts(path: str,
               classes: Sequence[str] = (),
               with_label: bool = True,
               columns: Tuple[str, str] = ('', '')) -> List[Line]:
    """The lines of a list, labels as they are written; see :func:`read_rows`.

    Args:
        path: The list file.
        classes: Names that labels may have; where names hold blanks, they tell where the path ends.
        with_label: Whether there are labels.
        columns: Names of the columns of paths and labels, where they are none of the usual ones.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: With file and line, if a line has no path, no label, or several.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'list file {path} {_absent(path)}: name a text file with a path and a label a line')
    lines = [(number, text.strip()) for number, text in enumerate(read_lines(path), 1) if text.strip()]
    header = _header(lines[0][1], with_label, columns) if lines else None
    if any(columns) and header is None:
        raise ValueError(f'{path}: the first line names no column '
                         f'{" and ".join(repr(c) for c in columns if c)}: {lines[0][1] if lines else ""!r}; '
                         'name one that it has')
    rows: List[Line] = []
    for number, text in lines[1 if header else 0:]:
        where = f'{path}, line {number}'
        name, label, more = _by_header(text, header, where) if header else _by_line(text, classes, with_label, where)
        if not name:
            raise ValueError(f'{where}: no path in {text!r}')
        rows.append(Line(name, label, number, more))
    if not rows:
        raise ValueError(f'{path} lists no image: write a path and a label a line')
    return rows


def read_rows(path: str,
              classes: Optional[Sequence[str]] = None,
              with_label: bool = True,
              first_label: int = 0) -> List[Row]:
    """Read a list of files and labels.

    A line is a path and a label, a class id or the name of a class, with a blank, tab, comma or semicolon between
    them; a path may hold any of these, as the label is what follows the last one. A first line with names of columns
    (``path,label``) says where both are. Blank lines are passed over.

    Args:
        path: The list file.
        classes: Names of the classes; None takes every class id >= 0 and no names.
        with_label: Whether there are labels; without, a line is a path.
        first_label: The label of the first class, 0 or 1.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: With file and line, if a line has no label, several, or one that is no class, if a file is listed
            under two labels, or the list is empty.
    """
    ids = {name: i for i, name in enumerate(classes or ())}
    rows = []
    for name, text, line, more in read_texts(path, tuple(ids), with_label):
        label = _class_id(text, ids, f'{path}, line {line}', first_label) if with_label else -1
        rows.append(Row(name, label, line, more))
    if with_label:
        _check(rows, path, None if classes is None else len(classes))
    return rows


class _Header(NamedTuple):
    delimiter: str
    names: List[str]
    path: int
    label: int


def _split(text: str, delimiter: str) -> List[str]:
    # csv has no runs of blanks
    try:
        fields = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True)) if delimiter != ' ' \
            else text.split()
    except csv.Error:  # absurdly long, or a quotation mark that never ends
        fields = text.split(delimiter)
    return [field.strip() for field in fields]


def _header(text: str, with_label: bool, columns: Tuple[str, str] = ('', '')) -> Optional[_Header]:
    """The columns that a first line names, or None if it is an ordinary line."""
    for delimiter in '\t;, ':  # blanks last: names of columns hold them, too
        names = _split(text, delimiter)
        small = [name.lower() for name in names]
        wanted = [(name.lower(), ) if name else usual for name, usual in zip(columns, (PATH_COLUMNS, LABEL_COLUMNS))]
        paths, labels = ([small.index(name) for name in names_ if name in small] for names_ in wanted)
        if paths and (labels or (not with_label and (delimiter != ' ' or len(names) == 1))):
            return _Header(delimiter, names, paths[0], labels[0] if labels else -1)
    return None


def _by_header(text: str, header: _Header, where: str) -> Tuple[str, str, Dict[str, str]]:
    fields = _split(text, header.delimiter)
    if len(fields) != len(header.names):
        raise ValueError(f'{where}: {len(fields)} columns in {text!r}, the header names {len(header.names)}: '
                         'put a cell with commas between quotation marks')
    more = {name: fields[i] for i, name in enumerate(header.names) if i not in (header.path, header.label)}
    return fields[header.path], fields[header.label] if header.label >= 0 else '', more


def _by_line(text: str, classes: Sequence[str], with_label: bool, where: str) -> Tuple[str, str, Dict[str, str]]:
    if not with_label:
        return _unquote(text), '', {}
    several = _SEVERAL.search(text)
    if several:  # 'a 1,2' has two labels: a file named 'a 1' would be strange
        count = len(re.findall(r'\d+', several[1]))
        raise ValueError(f'{where}: {count} labels ({several[1]}) in {text!r}, but an image has one')
    fallback: Tuple[str, str] = ('', '')
    # From the mark that paths hold most rarely to that which they hold most often.
    for pattern in (r'(.*?)\s*\t\s*([^\t]*)', r'(.*?)\s*;\s*([^;]*)', r'(.*?)\s*,\s*([^,]*)', r'(.*?)\s+(\S*)'):
        found = re.fullmatch(pattern, text)
        if not found:
            continue
        name, label = _unquote(found[1]), _unquote(found[2])
        if WHOLE.fullmatch(label) or label in classes:
            return name, label, {}
        fallback = fallback if fallback[0] else (name, label)
    if not fallback[0]:
        raise ValueError(f"{where}: no label in {text!r}; expected 'path label'")
    return (*fallback, {})


def _unquote(text: str) -> str:
    text = text.strip()
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def _class_id(text: str, ids: Dict[str, int], where: str, first_label: int) -> int:
    if WHOLE.fullmatch(text):
        label = int(text.split('.')[0])
        if label < first_label:
            raise ValueError(f'{where}: label {text} is not a class id >= {first_label}: mend the line')
        return label - first_label
    if text in ids:
        return ids[text]
    if not text:
        raise ValueError(f'{where}: the label is empty: write one')
    if ids:
        raise ValueError(f'{where}: label {text!r} is neither a class id nor one of the classes' + nearest(text, ids))
    raise ValueError(f'{where}: label {text!r} is not a whole number; labels that are names need a class file: '
                     'classes=FILE, one name a line')


def _check(rows: Sequence[Row], path: str, num_classes: Optional[int]) -> None:
    """Refuse labels outside the classes and files under two labels.

    Raises:
        ValueError: With file and line.
    """
    labels = {row.label for row in rows}
    for row in rows:
        if num_classes is not None and row.label >= num_classes:
            ones = '; labels that start at 1 need first_label=1' if min(labels) == 1 and max(
                labels) == num_classes else ': mend the line, or the classes'
            raise ValueError(f'{path}, line {row.line}: label {row.label} of {row.name!r} is outside the classes '
                             f'0..{num_classes - 1}{ones}')
    seen: Dict[str, Row] = {}
    for row in rows:
        first = seen.setdefault(row.name, row)
        if first.label != row.label:
            raise ValueError(f'{path}, line {row.line}: {row.name!r} has label {row.label}, but label {first.label} in '
                             f'line {first.line}')
