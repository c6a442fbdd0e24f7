# SPDX-License-Identifier: Apache-2.0
"""tools/_venv.sh: which Python is taken, when an environment is reused, what is said when it cannot be made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / 'tools' / '_venv.sh'


def shell(script, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith('MMPETL_')}
    done = subprocess.run(['bash', '-euc', f'. {VENV}\n{script}'],
                          env={'MMPETL_NO_UV': '1', **kept, **environment},
                          capture_output=True,
                          text=True,
                          timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def pip(tmp_path):
    """An interpreter whose ``-m venv`` and ``-m pip`` are played: they write down what they are asked, and fail while
    ``fail`` exists."""
    python = tmp_path / 'python'
    python.write_text(f"""#!/bin/sh
case "$1 $2" in
    '-m venv') echo "$*" >>{tmp_path}/calls; rm -rf "$4"; mkdir -p "$4/bin"; touch "$4/pyvenv.cfg"; cp {python} "$4/bin/python" ;;
    '-m pip') echo "$*" >>{tmp_path}/calls
        [ ! -e {tmp_path}/fail ] || {{ cat {tmp_path}/fail; exit 1; }} ;;
    '-c import torch'*) ;;
    *) exec {sys.executable} "$@" ;;
esac
""")
    python.chmod(0o755)
    return python


def calls(folder):
    log = folder / 'calls'
    return [line.split()[1] for line in log.read_text().splitlines()] if log.exists() else []


def test_reused_until_something_changes(tmp_path, pip):
    env = dict(MMPETL_PYTHON=str(pip))
    venv = tmp_path / 'env'
    code, out, err = shell(f'mmpetl_venv {venv} runtime dev; command -v python', **env)
    assert code == 0, err
    assert out.strip() == str(venv / 'bin' / 'python')
    assert calls(tmp_path) == ['venv', 'pip', 'pip']
    asked = (tmp_path / 'calls').read_text()
    assert '-c ' + str(ROOT / 'requirements/constraints.txt') in asked
    assert str(ROOT / 'requirements/dev.txt') in asked
    assert 'up to date' in shell(f'mmpetl_venv {venv} runtime dev', **env)[2]
    assert calls(tmp_path) == ['venv', 'pip', 'pip']
    shell(f'mmpetl_venv {venv} runtime dev viz', **env)  # another list: brought up to date in place
    assert calls(tmp_path) == ['venv', 'pip', 'pip', 'pip', 'pip']


def test_uv_is_taken_where_it_is(tmp_path, pip):
    """uv makes the environment and installs; where it fails pip does."""
    uv = tmp_path / 'bin' / 'uv'
    uv.parent.mkdir()
    uv.write_text(f"""#!/bin/sh
echo "uv $*" >>{tmp_path}/asked
[ ! -e {tmp_path}/broken ] || exit 2
[ "$1" != venv ] || {{ shift $(($# - 1)); mkdir -p "$1/bin"; cp {pip} "$1/bin/python"; }}
""")
    uv.chmod(0o755)
    env = dict(MMPETL_PYTHON=str(pip), MMPETL_NO_UV='0', PATH=f'{uv.parent}:{os.environ["PATH"]}')
    code, out, err = shell(f'mmpetl_venv {tmp_path}/env runtime; command -v python', **env)
    assert code == 0 and out.strip() == f'{tmp_path}/env/bin/python', err
    asked = (tmp_path / 'asked').read_text().splitlines()
    assert [line.split()[1] for line in asked] == ['venv', 'pip', 'pip'] and not calls(tmp_path)
    assert f'-c {ROOT}/requirements/constraints.txt -r {ROOT}/requirements/runtime.txt' in asked[1]
    assert asked[2].endswith(f'--no-deps --no-build-isolation -e {ROOT}')
    (tmp_path / 'broken').touch()
    assert shell(f'mmpetl_venv {tmp_path}/other runtime', **env)[0] == 0
    assert calls(tmp_path) == ['venv', 'pip', 'pip']


def test_another_torch(tmp_path, pip):
    """MMPETL_TORCH takes a torch of the constraints with its torchvision; another one is refused by name."""
    env = dict(MMPETL_PYTHON=str(pip), MMPETL_TORCH='2.11.0')
    code, _, err = shell(f'mmpetl_venv {tmp_path}/env runtime', **env)
    assert code == 0, err
    pins = (tmp_path / 'env/constraints.txt').read_text().splitlines()
    assert [line for line in pins if line.startswith('torch')] == ['torch===2.11.0', 'torchvision===0.26.0']
    assert 'einops==0.8.2' in pins and f'-c {tmp_path}/env/constraints.txt' in (tmp_path / 'calls').read_text()
    env['MMPETL_TORCH'] = '1.0'
    code, _, err = shell(f'mmpetl_venv {tmp_path}/other runtime', **env)
    assert code == 1 and err.endswith(
        'error: MMPETL_TORCH=1.0: requirements/constraints.txt has 2.11.0 2.12.1 2.13.0 2.14.1 \n')


def test_interrupted_installation_starts_afresh(tmp_path, pip):
    venv = tmp_path / 'env'
    (tmp_path /
     'fail').write_text('WARNING: Retrying after connection broken\nERROR: No matching distribution found for torch\n')
    code, _, err = shell(f'mmpetl_venv {venv} runtime', MMPETL_PYTHON=str(pip))
    assert code == 1
    assert 'is the package index reachable?' in err
    (tmp_path / 'fail').write_text('ERROR: OSError: [Errno 28] No space left on device\n')
    assert 'the disk is full' in shell(f'mmpetl_venv {venv} runtime', MMPETL_PYTHON=str(pip))[2]
    (tmp_path / 'fail').unlink()
    assert shell(f'mmpetl_venv {venv} runtime', MMPETL_PYTHON=str(pip))[0] == 0
    assert calls(tmp_path) == ['venv', 'pip', 'venv', 'pip', 'venv', 'pip', 'pip']


def test_environments_of_others_are_not_touched(tmp_path, pip):
    mine = tmp_path / 'mine'
    (mine / 'bin').mkdir(parents=True)
    (mine / 'bin' / 'python').symlink_to(sys.executable)
    code, _, err = shell('mmpetl_venv elsewhere runtime', MMPETL_VENV=str(mine), MMPETL_PYTHON=str(pip))
    assert code == 1
    assert 'was not made by this script' in err
    assert calls(tmp_path) == []
    code, out, _ = shell(
        'mmpetl_venv elsewhere runtime; command -v python', MMPETL_VENV=str(mine), MMPETL_NO_INSTALL='1')
    assert (code, out.strip()) == (0, str(mine / 'bin' / 'python'))
    code, _, err = shell('mmpetl_venv elsewhere runtime', MMPETL_VENV=str(tmp_path / 'none'), MMPETL_NO_INSTALL='1')
    assert code == 1
    assert 'there is no environment in' in err


def test_a_path_that_divides_PATH(tmp_path, pip):
    """uv makes such an environment, and its programs are never found: another Python would run the tests."""
    code, _, err = shell(f'mmpetl_venv {tmp_path}/python3.10:2.11 runtime', MMPETL_PYTHON=str(pip))
    assert code == 1 and "no environment can be used where a path has a ':'" in err and 'MMPETL_VENV=' in err
    assert calls(tmp_path) == []


def test_matrix_runs_in_the_environment_that_it_makes(tmp_path):
    """tools/test_matrix.sh with a torch of its own: the tests' `python` is that environment's."""
    made = tmp_path / 'checkout'
    (made / 'tools').mkdir(parents=True)
    for name in ('test_matrix.sh', '_venv.sh'):
        shutil.copy(ROOT / 'tools' / name, made / 'tools')
    environment = made / 'work_dirs/matrix/python3.97-7/bin'
    environment.mkdir(parents=True)
    (environment / 'python').symlink_to('/bin/true')
    (made / 'tools/run_tests.sh').write_text(
        '. "$(dirname "$0")/_venv.sh"\nmmpetl_venv x runtime\n[ "$(command -v python)" = "$MMPETL_VENV/bin/python" ] && echo "1 passed in 1s"\n')
    (tmp_path / 'python3.97').symlink_to('/bin/true')
    env = dict(os.environ, PATH=f'{tmp_path}:/usr/bin:/bin', PYENV_ROOT=str(tmp_path), MMPETL_NO_INSTALL='1')
    done = subprocess.run(['bash', str(made / 'tools/test_matrix.sh'), '--if-there', '3.97:7'], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and '| 1 passed |' in done.stdout, (done.stdout, done.stderr)


def test_no_supported_python(tmp_path):
    old = tmp_path / 'python3.9'
    old.write_text('#!/bin/sh\nexit 3\n')
    old.chmod(0o755)
    code, _, err = shell('mmpetl_venv env runtime', MMPETL_PYTHON=str(old))
    assert code == 1
    assert err.startswith('error: no Python 3.10, 3.11, 3.12 or 3.13 among:')


def test_python_without_venv(tmp_path):
    bare = tmp_path / 'python3.11'
    bare.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; *) exit 0 ;; esac\n')
    bare.chmod(0o755)
    assert 'apt-get install python3-venv' in shell('mmpetl_venv env runtime', MMPETL_PYTHON=str(bare))[2]


def test_pins_are_public_pairs():
    """Each Python has torch and its torchvision, pinned so that a '+cpu' build from elsewhere does not count."""
    lines = (ROOT / 'requirements' / 'constraints.txt').read_text().splitlines()
    pins = {line for line in lines if line.startswith('torch')}
    pairs = [('3.10', '2.11.0', '0.26.0'), ('3.11', '2.12.1', '0.27.1'), ('3.12', '2.13.0', '0.28.0'),
             ('3.13', '2.14.1', '0.29.1')]
    assert pins == {f'{name}==={version}; python_version == "{python}"' for python, torch, vision in pairs
                    for name, version in (('torch', torch), ('torchvision', vision))}


def test_matrix_tabulates(tmp_path):
    """tools/test_matrix.sh: a row for each Python, status 1 and a reason where one fails or is not there."""
    made = tmp_path / 'checkout'
    (made / 'tools').mkdir(parents=True)
    shutil.copy(ROOT / 'tools/test_matrix.sh', made / 'tools')
    (made / 'tools/run_tests.sh').write_text(
        'mkdir -p "$MMPETL_VENV/bin"; printf "#!/bin/sh\\necho 2.0" > "$MMPETL_VENV/bin/python"; chmod +x "$MMPETL_VENV/bin/python"\n'
        'case "$MMPETL_VENV" in *3.98) echo "== 1 failed, 2 passed in 3s =="; exit 1 ;; esac; echo "== 3 passed in 1.0s =="\n')
    for version in ('3.97', '3.98'):
        (tmp_path / f'python{version}').write_text('#!/bin/sh\nexit 0\n')
        (tmp_path / f'python{version}').chmod(0o755)
    env = dict(os.environ, PATH=f'{tmp_path}:/usr/bin:/bin', PYENV_ROOT=str(tmp_path))
    run = ['bash', str(made / 'tools/test_matrix.sh')]
    done = subprocess.run([*run, '3.97', '3.98', '3.99'], capture_output=True, text=True, env=env)
    assert done.returncode == 1 and 'there is no python3.99: install it, or uv' in done.stderr
    assert '== 1 failed, 2 passed in 3s ==' in done.stderr and '3 passed' not in done.stderr  # why, where only this output is kept
    assert done.stdout.splitlines()[2:] == [
        '| 3.97 | 2.0 | 3 passed | 0 |', '| 3.98 | 2.0 | 1 failed, 2 passed | 0 |', '| 3.99 | none | no interpreter | 0 |']
    assert (made / 'work_dirs/matrix/table.md').read_text() == done.stdout
    assert not subprocess.run([*run, '3.97', '--', 'tests/methods'], capture_output=True, env=env).returncode
    # in CI: what is not there is a line, what runs out of time too; a test that fails is a failure
    shutil.copy(VENV, made / 'tools')
    (made / 'tools/_venv.sh').write_text('mmpetl_venv() { case "$MMPETL_TORCH" in 9) exit 1 ;; 6) sleep 20 ;; esac; }\n')
    with (made / 'tools/run_tests.sh').open('a') as script:
        script.write('case "$MMPETL_VENV" in *-8) sleep 20 ;; esac\nexit 0\nmmpetl_venv x runtime\n')
    done = subprocess.run([*run, '--if-there', '--seconds', '3', '3.99', '3.97:9', '3.97', '3.97:8', '3.97:7'],
                          capture_output=True, text=True, env=env)
    assert done.returncode == 0 and [line.split(' | ')[2] for line in done.stdout.splitlines()[2:]] == [
        'no interpreter', 'no packages', '3 passed', 'the time was over', 'the time was over'], done.stdout
    done = subprocess.run([*run, '--if-there', '--seconds', '1', '3.97:6'], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and '| 3.97 | none | the time was over |' in done.stdout  # while packages were installed
    assert subprocess.run([*run, '--if-there', '3.98'], capture_output=True, env=env).returncode == 1
