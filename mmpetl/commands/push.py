# SPDX-License-Identifier: Apache-2.0
"""``mmpetl push ADAPTER USER/REPO``: an adapter onto the Hugging Face hub, with a page written from its header."""

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``push``."""
    parser = subparsers.add_parser('push', help='put an adapter onto the Hugging Face hub', description=__doc__)
    parser.add_argument('adapter', help='adapter file')
    parser.add_argument('repo', metavar='USER/REPO', help='repository; made if it is not there')
    parser.add_argument('--file', default='adapter.safetensors', help='its name there (default adapter.safetensors)')
    parser.add_argument('--private', action='store_true', help='make a new repository private')
    parser.add_argument('--revision', help='branch (default main)')
    parser.add_argument('--message', default='', help='message of the commit')
    parser.add_argument('--licence', default='', metavar='ID', help="licence of the adapter, such as 'apache-2.0'")
    parser.add_argument('--base-model', default='', metavar='USER/NAME', help='name of the base on the hub')
    parser.add_argument('--config', default='', help='config with which it was trained, for the page')
    parser.add_argument('--tags', nargs='+', default=[], metavar='TAG', help='further tags')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Push, and print the address that loads it.

    Raises:
        FileNotFoundError: If there is no such config; nothing is sent.
        ValueError: If it cannot be read, or the adapter is none.
    """
    from ..adapters.push import push
    from ..training.config import load_config
    if args.config:
        load_config(args.config)  # the page would name a config that nobody has
    address = push(args.adapter, args.repo, args.file, args.private, args.revision, args.message, args.licence,
                   args.base_model, args.config, args.tags)
    print(f'pushed: {address}')
    return 0
