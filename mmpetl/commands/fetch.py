# SPDX-License-Identifier: Apache-2.0
"""``mmpetl fetch NAME...``: official weights and data, or what to do by hand for what stands behind a form."""

import argparse
import re
from pathlib import Path
from typing import Dict, List, Sequence

from ..datasets.downloads import DATA, Data, missing, unpack
from ..datasets.fetch import cache_dir
from ..datasets.prepare import RECIPES, prepare
from ..datasets.sources import SOURCES
from ..names import folder
from ..suggest import nearest
from ..weights.bases import BASES, Base
from ..weights.download import download
from ..weights.reading import open_regular

#: Names that stand for several.
GROUPS: Dict[str, Sequence[str]] = {
    'elevater': [name for name in DATA if name.startswith('elevater/')],
    'fgvc': [name for name in DATA if name.startswith('fgvc/')],
}


def _urls(url: str, file: str, mirrors: Sequence[str]) -> List[str]:
    return [f'{mirror.rstrip("/")}/{file}' for mirror in mirrors] + [url]


def fetch_base(base: Base, mirrors: Sequence[str] = ()) -> Path:
    """An official weight file in the cache folder.

    Raises:
        DownloadError: If it cannot be had.
    """
    target = cache_dir() / base.file
    if not target.is_file():
        print(f'{base.title}; licence {base.licence}; {base.page}')
    path = download(_urls(base.url, base.file, mirrors), target, base.digest, base.size, check_weights)
    print(f'{base.name}: {path}')
    return path


def check_weights(path: Path) -> None:
    """Whether a file is a weight file at all, for those whose digest is not published.

    Raises:
        ValueError: If it is something else, for example a page that says why there is no file.
    """
    with open_regular(path) as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b'<', b'{')):
        raise ValueError('a page, not a weight file')


def fetch_data(data: Data, root: str = '', mirrors: Sequence[str] = ()) -> int:
    """What can be fetched of a data set, then its remaining steps; 0 if all is there in the end.

    Raises:
        DownloadError: If a file cannot be had.
        ValueError: If an archive cannot be unpacked.
    """
    folder = cache_dir() if data.root == '~' else Path(root or data.root).expanduser()
    lacking = missing(data, folder)
    if not lacking:
        print(f'{data.name}: {folder} is complete')
        return 0
    print(f'{data.title}; {data.page}')
    for file in data.files:
        done = folder / f'{file.target}.unpacked'
        if done.is_file():
            continue
        path = download(_urls(file.url, Path(file.target).name, mirrors), folder / file.target, check=check_weights
                        if file.target.endswith(('.zip', '.rar', '.tgz', '.tar')) else None)
        if file.unpack is not None:
            print(f'unpacking {path}')
            unpack(path, folder / file.unpack)
            path.unlink()
            done.touch()  # the archive is gone: without a mark it would be fetched again
    lacking = missing(data, folder)
    if not lacking:
        print(f'{data.name}: {folder} is complete')
        return 0
    for number, step in enumerate(data.steps, 1):
        print(f'  {number}. {step.format(root=folder)}')
    print(f'{data.name}: not there yet: {", ".join(str(folder / need) for need in lacking)}'
          + ('' if data.steps else f'; see {data.page}'))
    return 1


def show() -> None:
    """Print every name with what it gives."""
    print(f'weights, into {cache_dir()}:')
    for base in BASES.values():
        print(f'  {base.name:22} {base.title}; {base.licence}')
    print('data, into the folder that the recipes read, or --root:')
    for data in DATA.values():
        by_hand = ' (by hand: a form, or no address)' if not data.files else ''
        print(f'  {data.name:42} {data.title}{by_hand}')
    print(f'  {", ".join(GROUPS):42} all data sets of the suite')
    print('small weights and data out of ordinary packages:')
    for name in dict.fromkeys([*RECIPES, *SOURCES]):
        about = SOURCES[name].origin if name in SOURCES else (RECIPES[name][1].__doc__ or '').strip().split('\n')[0]
        print(f'  {name:22} {about}')


def run(args: argparse.Namespace) -> int:
    """Run the command; 0 if everything is there, 1 if something remains to be done by hand.

    Raises:
        ValueError: If a name is unknown.
    """
    if not args.names and (args.root or args.mirror):
        raise ValueError(f'--{"root" if args.root else "mirror"}: name what to fetch, `mmpetl fetch` '
                         'lists all names')
    if not args.names:
        show()
        return 0
    for mirror in args.mirror:
        if not re.match(r'(https?|ftp|file)://.', mirror):
            raise ValueError(f'--mirror {mirror!r:.100}: give an address that begins with https://, http://, ftp:// or '
                             'file://')
    known = [*BASES, *DATA, *GROUPS, *RECIPES, *SOURCES]
    names = [n for name in args.names for n in GROUPS.get(name, [name])]
    for name in names:
        if name not in known:
            raise ValueError(f'nothing called {name!r} to fetch' + nearest(name, known))
    elsewhere = [name for name in names if name in DATA and DATA[name].root != '~']
    if args.root and not elsewhere:
        raise ValueError(f'--root {args.root} is for data sets, and {names[0]} goes into the cache folder: leave it '
                         'out, or set MMPETL_CACHE to move that folder')
    if args.mirror and not any(name in BASES or name in DATA for name in names):
        raise ValueError(f'--mirror is for official weights and data sets, and {names[0]} comes out of a package: '
                         'leave it out, or set the index of pip and npm')
    try:
        if len(elsewhere) < len(names):
            folder(str(cache_dir()))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f'the cache folder (MMPETL_CACHE): {error}') from None
    status = 0
    for name in names:
        if name in BASES:
            fetch_base(BASES[name], args.mirror)
        elif name in DATA:
            status |= fetch_data(DATA[name], args.root or '', args.mirror)
        else:
            prepare(name)
    return status
