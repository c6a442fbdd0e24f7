# SPDX-License-Identifier: Apache-2.0
"""Published methods, one file each; a file's name is the method's. Importing this package registers them all."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')
