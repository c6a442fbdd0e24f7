# SPDX-License-Identifier: Apache-2.0
"""Numbers on the command line, refused by argparse with the option's name."""

import argparse
import math
from typing import Callable


def whole(least: int) -> Callable[[str], int]:
    """A type for argparse: a whole number from ``least`` upwards."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f'{text!r}: give a whole number >= {least}')
        return value

    return read


def positive(text: str) -> float:
    """A type for argparse: a finite number above 0."""
    value = _finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f'{text!r}: give a number above 0')
    return value


def not_negative(text: str) -> float:
    """A type for argparse: a finite number from 0."""
    value = _finite(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'{text!r}: give a number from 0')
    return value


def _finite(text: str) -> float:
    """The number; -1 for what is none, and for infinite ones."""
    try:
        value = float(text)
    except ValueError:
        return -1.
    return value if math.isfinite(value) else -1.
