# SPDX-License-Identifier: Apache-2.0
"""transformers' optimizer is imported when it is asked for, and not whenever mmengine is.

mmengine 0.10.7 imports ``transformers.Adafactor`` to register it, and with it most of transformers, and peft: more than
a third of the processor time in which a command starts.
"""

import importlib.util
import sys
from typing import Any

_BUILDER = 'mmengine.optim.optimizer.builder'
_halted = False


def leave_transformers_out() -> bool:
    """Before mmengine's builder of optimizers is imported: let it find no transformers.

    Returns:
        Whether it will find none; False where one of both is imported already.
    """
    global _halted
    if _BUILDER not in sys.modules and 'transformers' not in sys.modules:
        sys.modules['transformers'] = None  # type: ignore[assignment]  # importing it is an ImportError from here on
        _halted = True
    return _halted


def register_adafactor() -> None:
    """After it has been imported: transformers can be imported again, and Adafactor has its name in the registry."""
    global _halted
    if not _halted:
        return
    _halted = False
    del sys.modules['transformers']
    builder = sys.modules[_BUILDER]
    if importlib.util.find_spec('transformers') is not None:
        builder.OPTIMIZERS.register_module(name='Adafactor', module=adafactor)
        builder.TRANSFORMERS_OPTIMIZERS.append('Adafactor')


def adafactor(params: Any, **kwargs: Any) -> Any:
    """``transformers.Adafactor(params, **kwargs)``; mmengine passes the parameters by the first argument's name."""
    from transformers import Adafactor
    return Adafactor(params, **kwargs)
