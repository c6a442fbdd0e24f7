# SPDX-License-Identifier: Apache-2.0
"""Convert published weights: python tools/convert_weights.py SRC DST [--as NAME] [--arch ARCH] [--config CONFIG] (see
--help)."""

import sys
from pathlib import Path

if (Path(__file__).resolve().parents[1] / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmpetl.clean_errors import run_cleanly


def main(argv):
    """Import the libraries where what they say stays quiet."""
    from mmpetl.commands.convert import main
    main(argv)


if __name__ == '__main__':
    sys.exit(run_cleanly(main, sys.argv[1:]))
