# SPDX-License-Identifier: Apache-2.0
"""Train a model: python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] ... (see --help)."""

import sys
from pathlib import Path

if (Path(__file__).resolve().parents[1] / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmpetl.clean_errors import run_cleanly


def main(argv):
    """Import the libraries where what they say goes to the log file."""
    from mmpetl.training.run import train
    train(argv)


if __name__ == '__main__':
    sys.exit(run_cleanly(main, sys.argv[1:]))
