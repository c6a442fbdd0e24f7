# SPDX-License-Identifier: Apache-2.0
"""Do something when another package is imported, and nothing before: what keeps ``import mmpetl`` cheap.

mmpetl's registries belong to mmengine's, its safe checkpoint loader to ``mmengine.runner``, and mmaction2 needs
placeholders before its models are imported. None of these packages is imported for that: each remedy waits until
somebody needs the package it concerns.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional, Sequence

Action = Callable[[], Any]


class _Watcher(MetaPathFinder):
    """Stands before the other finders, finds nothing itself, and wraps the loader of the modules that it waits for."""

    def __init__(self) -> None:
        self.before: Dict[str, List[Action]] = {}
        self.after: Dict[str, List[Action]] = {}

    def find_spec(self, name: str, path: Optional[Sequence[str]] = None,
                  target: Optional[ModuleType] = None) -> Optional[ModuleSpec]:
        if name not in self.before and name not in self.after:
            return None
        for action in self.before.pop(name, []):
            action()
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in specs if found is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for action in self.after.pop(name, []):
                action()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _watcher() -> _Watcher:
    for finder in sys.meta_path:
        if isinstance(finder, _Watcher):
            return finder
    sys.meta_path.insert(0, _Watcher())
    return _watcher()


def before_import(name: str, action: Action) -> None:
    """Call ``action()`` just before module ``name`` is imported for the first time; at once if it has been already."""
    if name in sys.modules:
        action()
    else:
        _watcher().before.setdefault(name, []).append(action)


def after_import(name: str, action: Action) -> None:
    """Call ``action()`` as soon as module ``name`` has been imported; at once if it has been already."""
    if name in sys.modules:
        action()
    else:
        _watcher().after.setdefault(name, []).append(action)
