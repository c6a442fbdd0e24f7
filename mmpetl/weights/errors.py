# SPDX-License-Identifier: Apache-2.0
"""The one error of this package: a file that cannot be used, said in one line."""

from ..names import printable


class WeightFileError(ValueError):
    """A weight file that is damaged, foreign, hostile or of the wrong kind.

    The message is one line: the file, the cause and how to mend it.
    """

    def __init__(self, path: object, cause: str, mend: str = '') -> None:
        text = f'{path}: {cause}' + (f' ({mend})' if mend else '')
        super().__init__(printable(' '.join(text.split())))
