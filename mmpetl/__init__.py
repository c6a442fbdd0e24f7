"""mmpetl: parameter-efficient transfer learning of big frozen vision transformers for the OpenMMLab stack.

Importing the package prepares the environment (see :mod:`mmpetl.compat`) and creates the registries; everything else is
imported when it is first used.
"""

from typing import Any

from . import registry  # noqa: F401  (creates the scope 'mmpetl')
from .compat import install as _install
from .version import __version__

_install()

_API = ('attach', 'summary', 'save_adapter', 'load_adapter', 'merge', 'disabled', 'infer', 'AdapterBank')
__all__ = ['__version__', *_API]


def __getattr__(name: str) -> Any:
    if name in _API:
        from . import apis
        return getattr(apis, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
