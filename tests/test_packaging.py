# SPDX-License-Identifier: Apache-2.0
"""What an installation holds."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_wheel_contents(tmp_path):
    """The build ships the packages, their tables, and configs and tools under .mim; no tests, no caches."""
    build = [
        sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', tmp_path, 'build_py', '--build-lib',
        tmp_path / 'lib'
    ]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    built = {str(p.relative_to(tmp_path / 'lib')) for p in (tmp_path / 'lib').rglob('*') if p.is_file()}
    assert {
        'mmpetl/sites/method.py', 'mmpetl/methods/lora.py', 'mmpetl/.mim/tools/train.py', 'mmpetl/.mim/tools/dist_train.sh',
        'mmpetl/.mim/configs/_base_/default_runtime.py'
    } <= built
    tracked = subprocess.run(['git', 'ls-files', 'mmpetl', 'configs', 'tools'],
                             cwd=ROOT,
                             capture_output=True,
                             text=True).stdout.split()
    shipped = {p if p.startswith('mmpetl') else f'mmpetl/.mim/{p}' for p in tracked if (ROOT / p).exists()}
    assert shipped - built == set()
    assert not [p for p in built if '__pycache__' in p or not p.startswith('mmpetl/')]
    assert 'mmpetl = mmpetl.commands.main:main' in (tmp_path / 'mmpetl.egg-info' / 'entry_points.txt').read_text()


def test_ci_runs_the_tests():
    run = ROOT / '.ci' / 'run'
    assert run.stat().st_mode & 0o111
    assert run.read_text().splitlines()[-1] == 'exec bash tools/run_tests.sh'
