# SPDX-License-Identifier: Apache-2.0
"""``python -m mmpetl``: the command ``mmpetl`` of this Python."""

import sys

from .commands.main import main

if __name__ == '__main__':
    sys.exit(main())
