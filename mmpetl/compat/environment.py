# SPDX-License-Identifier: Apache-2.0
"""Known traps of the installed packages, and the versions that are supported."""

import importlib.metadata
import logging
import sys
import warnings
from typing import List, Optional, Tuple

import torch

PYTHON_RANGE = ((3, 10), (3, 14))
TORCH_RANGE = ((2, 11), (2, 15))

_warned = False


def _version(distribution: str) -> Optional[str]:
    """Version of an installed distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment_warnings() -> List[str]:
    """Known traps of the installed packages, one line each, with the command that mends it."""
    found = []
    engine, setuptools = _version('mmengine'), _version('setuptools')
    if engine == '0.10.7' and (setuptools is None or int(setuptools.split('.')[0]) >= 82):
        found.append(
            f"mmengine 0.10.7 needs pkg_resources, which setuptools {setuptools} lacks: 'scope::' configs and hub "
            f"fail. "
            f"Run: pip install 'setuptools>=77.0.3,<82'")
    engines = [d for d in ('mmengine', 'mmengine-lite', 'onedl-mmengine') if _version(d)]
    if len(engines) > 1:
        found.append(f'{" and ".join(engines)} install the same package. '
                     f'Run: pip uninstall {" ".join(engines)}; pip install mmengine==0.10.7')
    names = ('opencv-python', 'opencv-contrib-python', 'opencv-python-headless', 'opencv-contrib-python-headless')
    opencv = {d: v for d in names for v in [_version(d)] if v}
    if len(set(opencv.values())) > 1:
        listed = ', '.join(f'{d} {v}' for d, v in opencv.items())
        # By numbers: as texts 4.9 would come after 4.13.
        newest = max(opencv.values(), key=lambda version: [int(part) for part in version.split('.') if part.isdigit()])
        found.append(f'OpenCV packages of different versions overwrite each other ({listed}). '
                     f'Run: pip install {" ".join(f"{d}=={newest}" for d in opencv)}')
    return found


def hush_mmcv_lite() -> None:
    """Leave out mmcv-lite's advice, given once per import, to install the full mmcv: nothing here needs its compiled
    operations."""
    warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``', category=UserWarning)


def warn_environment() -> List[str]:
    """Log :func:`environment_warnings` once per process at INFO.

    Returns:
        The warnings, also when they were logged before.
    """
    global _warned
    found = environment_warnings()
    if not _warned:
        from mmengine.logging import print_log
        for line in found:
            print_log(line, logger='current', level=logging.INFO)
        _warned = True
    return found


def check_versions(python: Optional[Tuple[int, ...]] = None, torch_version: Optional[str] = None) -> None:
    """Refuse an unsupported Python, warn about an untested torch.

    Args:
        python: (major, minor, ...) of the interpreter; default the running one.
        torch_version: Version of torch, for example '2.12.1+cpu'; default the imported one.

    Raises:
        RuntimeError: If Python is outside 3.10-3.13.
    """
    found = (python or sys.version_info[:2])[:2]
    if not PYTHON_RANGE[0] <= found < PYTHON_RANGE[1]:
        raise RuntimeError(
            f'mmpetl needs Python 3.10, 3.11, 3.12 or 3.13, this is {found[0]}.{found[1]}: make an environment '
            f'with one of them'
        )
    text = torch_version or torch.__version__
    major, minor = (int(part) for part in text.split('+')[0].split('.')[:2])
    if not TORCH_RANGE[0] <= (major, minor) < TORCH_RANGE[1]:
        warnings.warn(
            f'mmpetl is tested with torch >=2.11,<2.15, this is {text}: install one of them if something fails',
            stacklevel=2)
