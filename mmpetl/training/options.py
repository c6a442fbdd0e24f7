# SPDX-License-Identifier: Apache-2.0
"""``--cfg-options``: read from the command line, and merged where the config has such a place."""

import argparse
from typing import Any, Mapping, Optional, Sequence

from mmengine.config import Config, DictAction

from ..suggest import nearest
from .check import KEYS, OWN_KEYS


class ConfigOptions(DictAction):
    """MMEngine's ``DictAction``, which names what it cannot read."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: Optional[str] = None) -> None:
        for text in values:
            key, sign, _ = text.partition('=')
            if not sign or not all(key.split('.')):
                raise argparse.ArgumentError(
                    self, f'{text!r}: write KEY=VALUE without blanks, for example train_cfg.max_epochs=6')
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError, IndexError) as error:
            raise argparse.ArgumentError(self, f'{" ".join(values)!r} cannot be read: {error}: close every bracket and '
                                         'quotation mark') from None


def merge_options(cfg: Config, options: Optional[Mapping[str, Any]], said: str = '--cfg-options') -> None:
    """Merge options into a config, each where it has a place.

    Args:
        cfg: The config, changed in place.
        options: Dotted key -> value.
        said: What the options are called, for messages.

    Raises:
        ValueError: Naming the key that leads nowhere: a list that is too short, a plain value in the middle, a section
            that the config has not and nobody reads.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"cfg_options={options!r:.80}: give a dict such as {{'train_cfg.max_epochs': 6}}")
    for key, value in (options or {}).items():
        _check_path(cfg, str(key), f'{said} {key}={value!r:.80}')
        try:
            cfg.merge_from_dict({key: value})
        except (TypeError, KeyError, IndexError, AssertionError, ValueError) as error:
            raise ValueError(f'{said} {key}={value!r:.80}: it does not fit what the config has there: '
                             f'{" ".join(str(error).split()):.200}') from error


def _check_path(cfg: Config, key: str, said: str) -> None:
    parts: Sequence[str] = key.split('.')
    node: Any = cfg
    for number, part in enumerate(parts):
        where = '.'.join(parts[:number]) or 'the config'
        if isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                raise ValueError(f'{said}: {where} is a list of {len(node)}: give a number from 0 to {len(node) - 1} '
                                 f'in place of {part!r}')
            node = node[int(part)]
            continue
        if not hasattr(node, 'keys') and node is not None:
            raise ValueError(f'{said}: {where} is {node!r:.80} and has no {part!r} in it: set {where} itself')
        if node is None or part not in node:
            if number == 0 and part not in (*KEYS, *OWN_KEYS):
                raise ValueError(f'{said}: the config has no {part!r}' + nearest(part, [*cfg.keys(), *KEYS]))
            return  # a new entry of a section
        node = node[part]


def parse_options(texts: Optional[Sequence[str]]) -> Mapping[str, Any]:
    """``['a.b=1', 'c=x']`` -> ``{'a.b': 1, 'c': 'x'}``.

    Raises:
        ValueError: If one cannot be read.
    """
    found = argparse.Namespace(cfg_options=None)
    try:
        if texts:
            ConfigOptions(['--cfg-options'], 'cfg_options')(argparse.ArgumentParser(), found, list(texts))
    except argparse.ArgumentError as error:
        raise ValueError(str(error).removeprefix('argument ')) from None
    return found.cfg_options or {}
