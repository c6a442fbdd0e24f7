# SPDX-License-Identifier: Apache-2.0
"""``--cfg-options``, merged where the config has such a place."""

from typing import Any, Iterator, Mapping, Optional, Sequence, Tuple

from mmengine.config import Config

from ..suggest import nearest
from .check import KEYS, OWN_KEYS


def merge_options(cfg: Config, options: Optional[Mapping[str, Any]], said: str = '--cfg-options') -> None:
    """Merge options into a config, each where it has a place.

    Args:
        cfg: The config, changed in place.
        options: Dotted key -> value.
        said: What the options are called, for messages.

    Raises:
        ValueError: Naming the key that leads nowhere: a list that is too short, a plain value in the middle, a section
            that the config has not and nobody reads, a variable that other entries were made from as the file was read.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"cfg_options={options!r:.80}: give a dict such as {{'train_cfg.max_epochs': 6}}")
    for key, value in (options or {}).items():
        _check_path(cfg, str(key), f'{said} {key}={value!r:.80}')
        if isinstance(value, Mapping) and isinstance(_value(cfg, str(key).split('.')), (list, tuple)):
            raise ValueError(f'{said} {key}={value!r:.80}: the config has a list there: write [dict(...)], or '
                             f'{key}.0.KEY=VALUE')
        try:
            cfg.merge_from_dict({key: value})
        except (TypeError, KeyError, IndexError, AttributeError, AssertionError, ValueError) as error:
            raise ValueError(f'{said} {key}={value!r:.80}: it does not fit what the config has there: '
                             f'{" ".join(str(error).split()):.200}; give a value of its kind') from error


def _check_path(cfg: Config, key: str, said: str) -> None:
    parts: Sequence[str] = key.split('.')
    _check_read(cfg, parts, said)
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


def _check_read(cfg: Config, parts: Sequence[str], said: str) -> None:
    """Refuse to change a copy of what is read: a variable of the file, the preprocessor beside the model's own."""
    name, places = parts[0], []
    if name == 'data_preprocessor' and isinstance(cfg.get('model'), Mapping) and cfg.model.get(name):
        places = [f'model.{name}']
    elif name not in (*KEYS, *OWN_KEYS):
        value = _value(cfg, parts)
        places = [place for key in (*KEYS, *OWN_KEYS) if key in cfg for place in _places(cfg[key], value, key)]
        places = [place for place in places if place.split('.')[-1] == parts[-1]] or places
    if places:
        more = f' and {len(places) - 3} more' if len(places) > 3 else ''
        raise ValueError(f'{said}: nobody reads {name}, a copy of what stands in {", ".join(places[:3])}{more}: set '
                         'that, or write it in a config')


def _value(cfg: Config, parts: Sequence[str]) -> Any:
    """What a config has at a path; None where it ends."""
    value: Any = cfg.get(parts[0])
    for part in parts[1:]:
        if isinstance(value, (list, tuple)) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _places(node: Any, value: Any, where: str) -> Iterator[str]:
    """Where in a section a value stands, or the beginning of texts that start with it."""
    if value is None or value is False or value is True or value == '':
        return
    text = isinstance(node, str) and isinstance(value, str) and node.startswith(value)
    if type(node) is type(value) and (node == value or text):
        yield where
        return
    items: Sequence[Tuple[Any, Any]] = tuple(node.items()) if isinstance(node, Mapping) else tuple(
        enumerate(node)) if isinstance(node, (list, tuple)) else ()
    for name, part in items:
        yield from _places(part, value, f'{where}.{name}')
