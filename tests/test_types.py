# SPDX-License-Identifier: Apache-2.0
"""The types of the package, as `make types` checks them."""

import subprocess
import sys
from pathlib import Path


def test_types(tmp_path):
    done = subprocess.run([sys.executable, '-m', 'mypy', '--cache-dir', str(tmp_path)], cwd=Path(__file__).parents[1],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
