# SPDX-License-Identifier: Apache-2.0
"""``mmpetl data check`` on good and damaged data, through the command line."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from mmpetl.commands.data_check import check_suite, check_task
from mmpetl.commands.main import COMMANDS, build_parser, main
from mmpetl.datasets.tables import get_task

sys.path.insert(0, str(Path(__file__).parents[1]))
import suite_data  # noqa: E402


@pytest.fixture
def vtab(tmp_path):
    suite_data.write_vtab(tmp_path, 'kitti', dict(train800=800, val200=200, test=711))
    return tmp_path


def test_good_data(vtab, capsys):
    assert main(
        ['data', 'check', 'vtab', '--root',
         str(vtab), '--task', 'kitti', '--json',
         str(vtab / 'out/report.json')]) == 0
    text = capsys.readouterr().out
    assert '1 of 1 tasks are in order, every image readable' in text and '711' in text and '4/4' in text
    report, = json.loads((vtab / 'out/report.json').read_text())
    want = hashlib.sha256((vtab / 'kitti/test.txt').read_bytes()).hexdigest()
    assert report['splits']['test'] == dict(
        file=str(vtab / 'kitti/test.txt'), sha256=want, count=711, expected=711, classes=4, smallest=177, largest=178)
    assert want[:12] in text and not report['problems']


def test_everything_that_can_be_wrong(vtab, capsys):
    images = vtab / 'kitti/images'
    (images / 'train800/000003.png').unlink()
    (images / 'val200/000005.png').write_bytes(b'\x89PNG broken')
    shutil.copy(images / 'train800/000000.png', images / 'test/000007.png')
    (vtab / 'kitti/test.txt').write_text('\n'.join((vtab / 'kitti/test.txt').read_text().splitlines()[:700]))
    report = check_task(get_task('vtab', 'kitti'), str(vtab))
    assert report.missing == [str(images / 'train800/000003.png')]
    assert len(report.broken) == 1 and 'val200/000005.png' in report.broken[0]
    assert report.duplicates == [(str(images / 'train800/000000.png'), str(images / 'test/000007.png'))]
    text = '\n'.join(report.problems)
    for part in ('test has 700 images, published are 711', '1 of 1700 images are missing',
                 '1 of 1700 images cannot be decoded', '1 test images are byte for byte in the training lists'):
        assert part in text
    assert main(['data', 'check', 'vtab', '--root', str(vtab), '--task', 'kitti']) == 1
    assert '0 of 1 tasks are in order' in capsys.readouterr().out
    quick = check_task(get_task('vtab', 'kitti'), str(vtab), decode=False)
    assert not quick.broken and len(quick.missing) == 1 and len(quick.duplicates) == 1


def test_missing_folders_lists_and_bad_lists(vtab, capsys):
    os.remove(vtab / 'kitti/val200.txt')
    (vtab / 'svhn').mkdir()
    (vtab / 'svhn/test.txt').write_text('images/a.png 12\n')
    kitti, svhn, cifar = check_suite('vtab', str(vtab), ['kitti', 'svhn', 'cifar'])
    # val200 can be cut out of train800val200.
    assert not kitti.problems and kitti.splits['val200'].count == 200 and kitti.splits['val200'].file == ''
    assert any('label 12, but the task has classes 0..9' in p for p in svhn.problems)
    assert any('svhn/train800.txt is missing' in p for p in svhn.problems)
    assert 'does not exist' in cifar.problems[0] and 'plain image release' in cifar.problems[0]
    assert main(['data', 'check', 'vtab', '--root', str(vtab / 'absent')]) == 1
    assert 'set --root' in capsys.readouterr().err
    assert main(['data', 'check', 'vtabb']) == 1
    assert "did you mean 'vtab'" in capsys.readouterr().err


def test_fgvc_and_zipped_elevater(tmp_path):
    suite_data.write_fgvc(tmp_path, 'OxfordFlowers', dict(train=1, val=1, test=1))
    report, = check_suite('fgvc', str(tmp_path), ['OxfordFlowers'])
    assert {s: r.count for s, r in report.splits.items()} == dict(train=102, val=102, test=102) and not report.missing
    suite_data.write_elevater(tmp_path, 'hateful-memes', dict(train=3, test=2))
    report, = check_suite('elevater', str(tmp_path), ['hateful-memes'])
    assert report.splits['train'].count == 6 and not report.missing and not report.broken
    # The generator repeats its images, so training and test overlap: exactly what the check is for.
    assert len(report.duplicates) == 4


def test_unused_validation_lists_of_elevater_may_be_absent(tmp_path):
    suite_data.write_elevater(tmp_path, 'dtd', dict(train=1, test=1))
    report, = check_suite('elevater', str(tmp_path), ['dtd'])
    assert not any('list' in p and 'missing' in p for p in report.problems)


def test_command_line_lists_what_exists(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['--help'])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert 'data' in text and COMMANDS['data'].help in text
    with pytest.raises(SystemExit) as stop:
        build_parser('data').parse_args(['dta'])
    assert stop.value.code == 2
