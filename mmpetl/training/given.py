# SPDX-License-Identifier: Apache-2.0
"""``--cfg-options`` as a command line gives them. Imports nothing big."""

import argparse
import ast
import re
from typing import Any, Mapping, Optional, Sequence

from mmengine.config import DictAction


class ConfigOptions(DictAction):
    """MMEngine's ``DictAction``, which names what it cannot read, and reads dicts as a config writes them."""

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        """The value of a text: ``dict(...)`` and ``{...}`` by the rules of Python, all else by MMEngine's."""
        if not re.match(r'\s*(dict\(|{|[\[(].*(dict\(|{))', val, re.DOTALL):
            return DictAction._parse_iterable(val)
        try:
            return _literal(ast.parse(val.strip(), mode='eval').body)
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
            raise ValueError(f'it is no dict or list of Python ({" ".join(str(error).split()):.80})') from None

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: Optional[str] = None) -> None:
        for text in values:
            key, sign, _ = text.partition('=')
            if not sign or not all(key.split('.')):
                raise argparse.ArgumentError(
                    self, f'{text!r}: write KEY=VALUE without blanks, for example train_cfg.max_epochs=6')
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError, IndexError, RecursionError) as error:
            said = 'brackets and commas' if isinstance(error, RecursionError) else error
            raise argparse.ArgumentError(self, f'{" ".join(values)!r:.200} cannot be read: {said}: close every bracket '
                                         'and quotation mark, and write dicts as dict(key=value)') from None


def _literal(node: Optional[ast.AST]) -> Any:
    """The value of an expression of literals, lists and ``dict(key=value)``; nothing is called."""
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict' or node.args or any(
                k.arg is None for k in node.keywords):
            raise ValueError('only dict(key=value) may be called')
        return {str(k.arg): _literal(k.value) for k in node.keywords}
    if isinstance(node, ast.Dict):
        return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_literal(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if node is None or isinstance(node, ast.Set):
        raise ValueError('only lists, tuples and dicts')
    return ast.literal_eval(node)


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
