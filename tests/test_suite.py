# SPDX-License-Identifier: Apache-2.0
"""How the suite is shared out among processes, and what a test costs it that never ends."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


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


def test_a_test_that_hangs_costs_itself_alone(tmp_path):
    """It waits for a process, or for ever; the others run, and where it stood is printed."""
    shutil.copy(Path(__file__).with_name('conftest.py'), tmp_path)
    (tmp_path / 'pytest.ini').write_text('[pytest]\ntest_limit = 2\nmarkers = slow\n    gpu\n')
    (tmp_path / 'test_a.py').write_text(
        'import os, signal, subprocess, time\nimport pytest\n'
        'def test_waits_for_a_process():\n    assert subprocess.run(["sleep", "600"]).returncode == 0\n'
        'def test_waits_for_a_copy():\n    child = os.fork()\n    if not child:\n        time.sleep(600)\n'
        '    assert os.waitpid(child, 0)[1] == 0\n'
        'def test_waits():\n    time.sleep(600)\n'
        'def test_hears_nothing():\n    signal.signal(signal.SIGUSR2, signal.SIG_IGN)\n    time.sleep(600)\n'
        '@pytest.mark.slow\ndef test_has_more_time():\n    time.sleep(3)\n'
        'def test_ends():\n    pass\n')
    done = subprocess.run([sys.executable, '-m', 'pytest', '-n', '1', '--max-worker-restart', '1', '-rA', str(tmp_path)],
                          cwd=tmp_path, capture_output=True, text=True, timeout=200,
                          env={key: value for key, value in os.environ.items() if key != 'MMPETL_HUNG'})
    assert '4 failed, 2 passed' in done.stdout, done.stdout[-3000:]
    assert all(f'PASSED test_a.py::test_{name}' in done.stdout for name in ('ends', 'has_more_time'))
    assert "crashed while running 'test_a.py::test_hears_nothing'" in done.stdout
    assert 'Failed: it took more than 2 s' in done.stdout and "'sleep 600'" in done.stdout
    assert 'test_waits_for_a_copy took more than 2 s' in done.stdout and 'in test_waits_for_a_copy' in done.stdout


@pytest.mark.parametrize('always', [pytest.param(False, id='once'), pytest.param(True, id='always', marks=pytest.mark.slow)])
def test_what_hung_runs_once_more(tmp_path, always):
    """By the printed command: a test that hangs again fails the suite, one that does not is named."""
    root = Path(__file__).parents[1]
    for folder, name in (('tools', 'run_tests.sh'), ('tools', '_venv.sh'), ('tests', 'conftest.py')):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(root / folder / name, tmp_path / folder)
    (tmp_path / 'pytest.ini').write_text('[pytest]\ntest_limit = 2\nmarkers = slow\n    gpu\n')
    (tmp_path / 'tests/test_a.py').write_text(
        'import time\nfrom pathlib import Path\n'
        'def test_hangs():\n    if not Path("seen").exists():\n        Path("seen").touch()\n        time.sleep(600)\n'
        'def test_ends():\n    pass\n'.replace('Path("seen").touch()', 'pass' if always else 'Path("seen").touch()'))
    venv = Path(sys.executable).parents[1]
    done = subprocess.run(['bash', 'tools/run_tests.sh'], cwd=tmp_path, capture_output=True, text=True, timeout=200,
                          env={**os.environ, 'MMPETL_VENV': str(venv), 'MMPETL_NO_INSTALL': '1'})
    assert done.returncode == (1 if always else 0), done.stdout[-3000:] + done.stderr[-1000:]
    assert 'Ended because they hung:\ntests/test_a.py::test_hangs\n' in done.stdout
    assert ('1 passed in' in done.stdout.rpartition('once more')[2]) is not always
