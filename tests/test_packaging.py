# SPDX-License-Identifier: Apache-2.0
"""What an installation holds, and what a source archive holds to build one from."""

import email
import glob
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*words, cwd):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def tracked(*folders):
    """Files of the checkout, as git knows them."""
    words = ['git', 'ls-files', '--cached', '--others', '--exclude-standard', *folders]  # an empty folder's mark aside
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.split()
    return {name for name in names if (ROOT / name).is_file()} - {'work_dirs/.gitkeep'}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A source archive, unpacked; and what setuptools said."""
    folder = tmp_path_factory.mktemp('sdist')
    said = run('setup.py', '-q', 'egg_info', '--egg-base', folder, 'sdist', '--dist-dir', folder, cwd=ROOT)
    archive, = folder.glob('*.tar.gz')
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter='data')
    return folder / archive.name.removesuffix('.tar.gz'), said


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    """A wheel, built from the source archive alone."""
    folder = tmp_path_factory.mktemp('wheel')
    run('-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', folder, source[0], cwd=folder)
    return zipfile.ZipFile(next(folder.glob('mmpetl-*.whl')))


def test_the_source_archive_is_whole(source):
    """Docs, tests, tools, configs and benchmarks are in it: all that git knows, and nothing else."""
    folder, said = source
    inside = {str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()}
    assert tracked() - inside - {p for p in tracked() if p.startswith('.')} == set()
    assert {'.ci/run', 'tests/cases.py', 'docs/configs.md', 'tests/test_packaging.py'} <= inside
    made = {'PKG-INFO', 'setup.cfg'}
    assert {p for p in inside - tracked() if not p.startswith('mmpetl.egg-info/')} <= made
    assert 'no files found matching' not in said  # patterns of MANIFEST.in


def test_wheel_contents(wheel):
    """The wheel ships the packages, their tables, and configs and tools under .mim; no tests, no caches."""
    built = {name for name in wheel.namelist() if '.dist-info/' not in name}
    assert {
        'mmpetl/sites/method.py', 'mmpetl/methods/lora.py', 'mmpetl/.mim/tools/train.py', 'mmpetl/.mim/tools/dist_train.sh',
        'mmpetl/.mim/configs/_base_/default_runtime.py', 'mmpetl/py.typed', 'mmpetl/__init__.pyi'
    } <= built
    shipped = {p if p.startswith('mmpetl') else f'mmpetl/.mim/{p}' for p in tracked('mmpetl', 'configs', 'tools')}
    assert shipped - built == set()
    assert built - shipped == {'mmpetl/.mim/model-index.yml'}
    entry = next(name for name in wheel.namelist() if name.endswith('entry_points.txt'))
    assert 'mmpetl = mmpetl.commands.main:main' in wheel.read(entry).decode()


@pytest.mark.slow
def test_mim_lists_the_recipes(wheel, tmp_path):
    """OpenMMLab's own tool, over an installation. It is fetched here alone: its requirements forbid today's versions."""
    words = ['-m', 'pip', 'install', '-q', '--target', tmp_path / 'mim', '--no-deps', 'openmim==0.3.9', 'colorama', 'tabulate']
    run(*words, cwd=tmp_path)
    wheel.extractall(tmp_path / 'installed')
    env = {**os.environ, 'PYTHONPATH': f'{tmp_path / "installed"}{os.pathsep}{tmp_path / "mim"}', 'PAGER': 'cat'}

    def mim(*words):
        return subprocess.run([sys.executable, '-W', 'ignore', '-m', 'mim', *words], cwd=tmp_path, capture_output=True,
                              text=True, timeout=300, env=env)

    listed = mim('search', 'mmpetl', '--valid-config')
    assert listed.returncode == 0, listed.stderr[-2000:]
    names = {p.stem for folder in ('apt', 'backbones', 'e2vpt', 'peers', 'pevit', 'synqt', 'vpetl')
             for p in (ROOT / 'configs' / folder).glob('*.py')}
    assert set(re.findall(r"'([^']+)'", listed.stdout)) == names
    found = mim('search', 'mmpetl', '--model', 'synqt', '--condition', 'epochs==50', '--field', 'config').stdout
    path, = re.findall(r'configs/\S+\.py', found)
    assert (tmp_path / 'installed/mmpetl/.mim' / path).is_file()
    assert "got {'weight'}" in mim('download', 'mmpetl', '--config', sorted(names)[0]).stderr  # as the page says: none


def test_metadata(wheel):
    """What an index shows. Home page and repository are not known, so none is named."""
    text = wheel.read(next(name for name in wheel.namelist() if name.endswith('/METADATA'))).decode()
    found = email.message_from_string(text)
    assert found['Name'] == 'mmpetl' and found['Author'] == 'The mmpetl authors' and found['Summary']
    assert set(found['Requires-Python'].split(',')) == {'>=3.10', '<3.14'}
    assert found['License-Expression'] == 'Apache-2.0'
    pythons = {c.rpartition(' ')[2] for c in found.get_all('Classifier') if re.search(r'Python :: 3\.\d+$', c)}
    assert pythons == {'3.10', '3.11', '3.12', '3.13'}
    assert not found.get_all('Project-URL') and not found['Home-page'] and not found['Author-email']
    assert found.get_payload().startswith('# mmpetl')


def test_patterns_of_package_data_match():
    lists = re.search(r'package_data=(\{.*?\})', (ROOT / 'setup.py').read_text())[1]
    patterns = eval(lists)['mmpetl']
    assert len(patterns) >= 3 and not [p for p in patterns if not glob.glob(str(ROOT / 'mmpetl' / p))]


def test_ci_runs_the_tests():
    ci = ROOT / '.ci' / 'run'
    assert ci.stat().st_mode & 0o111
    assert 'bash tools/run_tests.sh\n' in ci.read_text()
