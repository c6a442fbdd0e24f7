# SPDX-License-Identifier: Apache-2.0
"""How the suite is shared out among processes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path


def test_the_tests_of_a_file_share_a_process(tmp_path):
    """Those of a file in SPREAD do not have to."""
    shutil.copy(Path(__file__).with_name('conftest.py'), tmp_path)
    for name in ('test_a.py', 'test_b.py', 'test_generic.py'):
        (tmp_path / name).write_text('import time\n' + ''.join(
            f'def test_{i}():\n    time.sleep(.05)\n' for i in range(6)))
    done = subprocess.run([sys.executable, '-m', 'pytest', '-n', '2', '--dist', 'loadscope', '-v', str(tmp_path)],
                          cwd=tmp_path, capture_output=True, text=True, timeout=300)
    found = re.findall(r'\[(gw\d)\] .*PASSED (\S+)::', done.stdout)
    assert len(found) == 18, done.stdout[-2000:]
    assert {name: len({worker for worker, file in found if file == name}) for _, name in found} == {
        'test_a.py': 1, 'test_b.py': 1, 'test_generic.py': 2}
