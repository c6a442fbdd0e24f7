# SPDX-License-Identifier: Apache-2.0
"""mmpetl: parameter-efficient transfer learning of big frozen vision transformers for the OpenMMLab stack.

Importing the package costs next to nothing: the registries appear when mmengine's do, the remedies of
:mod:`mmpetl.compat` are put in place when what they mend is imported, and the rest is imported when it is first used.
"""

import importlib
from typing import Any, List

from .on_import import after_import as _after_import
from .on_import import before_import as _before_import
from .version import __version__

_API = ('attach', 'summary', 'save_adapter', 'load_adapter', 'merge', 'disabled', 'infer', 'AdapterBank',
        'load_peft', 'save_peft', 'push')
__all__ = ['__version__', *_API]


def _compat(name: str) -> Any:
    # named by its file: the package itself may be half imported when the libraries that it imports appear
    file, _, function = name.partition('.')
    return lambda: getattr(importlib.import_module(f'{__name__}.compat.{file}'), function)()


_before_import('mmcv', _compat('environment.hush_mmcv_lite'))
_before_import('mmaction.models', _compat('placeholders.install_mmaction_stub'))
for _name in ('mmseg', 'mmdet'):
    _before_import(_name, _compat('placeholders.install_mmcv_ops_stub'))
_before_import('mmengine.optim.optimizer.builder', _compat('optimizers.leave_transformers_out'))
_after_import('mmengine.optim.optimizer.builder', _compat('optimizers.register_adafactor'))
_after_import('mmengine.registry', lambda: importlib.import_module(f'{__name__}.registry'))
_after_import('mmengine.runner.checkpoint', _compat('loading.install_safe_loader'))
_after_import('mmpretrain.utils.dependency', _compat('placeholders.leave_multimodal_out'))
_after_import('torch', _compat('environment.check_versions'))


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(importlib.import_module(f'{__name__}.apis'), name)
    if name in ('apis', 'compat', 'registry'):  # modules that were attributes without an import of their own
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> List[str]:
    return sorted(__all__)
