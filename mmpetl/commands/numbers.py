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
    try:
        value = float(text)
    except ValueError:
        value = 0.
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f'{text!r}: give a number above 0')
    return value
