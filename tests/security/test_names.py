# SPDX-License-Identifier: Apache-2.0
"""Names out of files: one function decides whether one may become a path, one per medium how it is written."""

import csv
import io
import json
import re

import pytest
import torch
from toy_model import write_base, write_config

from mmpetl.adapters.bank import AdapterBank
from mmpetl.clean_errors import run_cleanly
from mmpetl.commands.inspect import describe, inspect_file
from mmpetl.datasets import ListDataset
from mmpetl.datasets.lists import below
from mmpetl.datasets.tables import get_suite
from mmpetl.names import csv_cell, latex_text, markdown_text, path_below, plain_name, printable
from mmpetl.sweeps.plan import read_plan
from mmpetl.sweeps.report import Cell, Row
from mmpetl.sweeps.report_files import csv_text, latex, markdown
from mmpetl.training.build import build_model, read_config
from mmpetl.weights import WeightFileError, adapter_file

GOOD = ['a', 'caltech-101', 'A b.c', 'übung', '日本語', 'x' * 200, '...a', 'console', 'a.con']
CLIMBING = ['..', '../x', 'a/../../x', '/etc/passwd', '\\\\host\\x', '..\\x', 'C:\\x', 'C:x', '~/x', '', 'a\0b', 'a\nb',
            'a\x1b[2Jb', 'a\x7f', '\u202egnp.exe', 'a\x9bb']
NO_NAME = [*CLIMBING, 'a/b', 'a\\b', '.', ' a', 'a ', '-rf', '~', 'con', 'NUL.txt', 'x' * 201, 'é' * 101, None, 7, ['a'], b'a']
HOSTILE = "<script>alert(1)</script>|[x](javascript:1)![y](z)`c`\x1b]0;title\x07\u202e=cmd|' /C calc'!A0"


@pytest.mark.parametrize('name', GOOD, ids=ascii)
def test_honest_names(name):
    assert plain_name(name, 'task') == name and path_below(f'{name}/b.png', 'list') == f'{name}/b.png'


@pytest.mark.parametrize('name', NO_NAME, ids=ascii)
def test_names_that_are_no_path(name):
    with pytest.raises(ValueError, match='^suite.json: task ') as error:
        plain_name(name, 'suite.json: task')
    assert str(error.value).isprintable()
    if name in CLIMBING or not isinstance(name, str):
        with pytest.raises(ValueError, match='^list.txt: .* leads out of its folder'):
            path_below(name, 'list.txt:')


@pytest.mark.parametrize('name', ['../../x', '/tmp/x', 'a/b', '..', 'con', 'a\x1bb', ''], ids=ascii)
def test_tasks_of_a_suite_file(tmp_path, name):
    path = tmp_path / 'suite.json'
    path.write_text(json.dumps(dict(tasks={name: dict(num_classes=2)})))
    with pytest.raises(ValueError, match='cannot name a file'):
        get_suite(str(path))
    path.write_text(json.dumps(dict(tasks=dict(a=dict(num_classes=2)))))
    assert list(get_suite(str(path)).tasks) == ['a']


@pytest.mark.parametrize('key', ['folder', 'images', 'classes_file'])
@pytest.mark.parametrize('value', ['../x', '/etc', 'C:\\x', 7], ids=ascii)
def test_folders_of_a_suite_file(tmp_path, key, value):
    path = tmp_path / 'suite.json'
    path.write_text(json.dumps(dict(tasks=dict(a={'num_classes': 2, key: value}))))
    with pytest.raises(ValueError, match='leads out of its folder'):
        get_suite(str(path))


PLAN = dict(name='x', suite='vtab', tasks=['caltech101'], seeds=[0], shot_seeds=None, root=None, cfg_options={},
            select='last', search='grid', grid={})


@pytest.mark.parametrize('change', [dict(tasks=['../../x']), dict(tasks=['/x']), dict(tasks=[7]), dict(tasks='caltech101'),
                                    dict(seeds=['../x']), dict(seeds=[True]), dict(shot_seeds=['/x']), dict(name=['x']),
                                    dict(grid=[1])], ids=str)
def test_plans_of_sweeps(tmp_path, change):
    path = tmp_path / 'sweep.json'
    path.write_text(json.dumps(PLAN))
    assert read_plan(str(tmp_path))['tasks'] == ['caltech101']
    path.write_text(json.dumps({**PLAN, **change}))
    with pytest.raises(ValueError, match='sweep.json'):
        read_plan(str(tmp_path))


@pytest.mark.parametrize('name', ['..', '../x', '/x', 'con', 'a b', ''])
def test_names_in_a_bank(tmp_path, name):
    write_base(tmp_path)
    bank = AdapterBank(build_model(read_config(str(write_config(tmp_path, [])))))
    with pytest.raises(ValueError, match='use letters, digits'):
        bank.add(name)


@pytest.mark.parametrize('entry', ['../x.png', '/etc/passwd', 'a/../../x.png', 'C:\\x.png'])
def test_entries_of_lists(tmp_path, entry):
    (tmp_path / 'list.txt').write_text(f'a.png 0\n{entry} 0\n')
    (tmp_path / 'a.png').write_bytes(b'')
    with pytest.raises(ValueError, match='list.txt: .* leads out of its folder'):
        ListDataset('list.txt', data_root=str(tmp_path), pipeline=[])
    assert below('', '/data/a.png', 'list.txt') == '/data/a.png' == below('/x', '/data/a.png', 'list.txt', whole=True)
    for absolute in ('/a/../b', '/a\0b'):
        with pytest.raises(ValueError, match='leads out'):
            below('', absolute, 'list.txt')


# -- as text ----------------------------------------------------------------------------------------------------------


def test_printable():
    assert printable('Übung 日本 a') == 'Übung 日本 a'
    assert printable('a\x1b[31mb\r\nc\u202e\x9b\ud800') == 'a\\x1b[31mb\\r\\nc\\u202e\\x9b\\ud800'


def test_markdown():
    text = markdown_text(HOSTILE)
    assert '<' not in text and text.isprintable() and re.search(r'(?<!\\)[|`\[]', text) is None
    assert markdown_text('lora_adaptformer, 2 x') == 'lora_adaptformer, 2 x'


@pytest.mark.parametrize('value', ['=cmd', '+1', '-1', '@x', '\t=cmd', '\r=cmd', ' =cmd', '=1|x'], ids=ascii)
def test_csv(value):
    assert csv_cell(value)[0] == "'" or not csv_cell(value).lstrip().startswith(('=', '+', '-', '@'))
    assert csv_cell(-1.5) == -1.5 and csv_cell('lora') == 'lora'


def test_latex():
    assert latex_text('\\input{x}_#%&$~^') == (r'\textbackslash{}input\{x\}\_\#\%\&\$\textasciitilde{}\textasciicircum{}')


def hostile_row():
    cell = Cell(wanted=1, errors=[f'x: {HOSTILE}'], scores=[1.], best_scores=[1.], chosen=HOSTILE)
    return Row(HOSTILE, 'vtab', {'caltech101': cell})


def test_reports_escape_names():
    text = markdown([hostile_row()])
    assert '<script' not in text and '\x1b' not in text and '\u202e' not in text and '](' not in text.replace('\\](', '')
    lines = text.splitlines()
    assert len({len(re.findall(r'(?<!\\)\|', line)) for line in lines if line.startswith('|')}) == 1, 'a cell was broken up'
    table = list(csv.reader(io.StringIO(csv_text([hostile_row()]))))
    assert len({len(line) for line in table}) == 1
    for line in table:
        for cell in line:
            assert cell.isprintable() and not cell.lstrip().startswith(('=', '+', '@')), cell
            assert not cell.startswith('-') or re.fullmatch(r'-[\d.]+', cell)
    assert '\x1b' not in latex([hostile_row()]) and '\\pm' not in latex_text('x')


def test_what_is_printed_of_a_file_is_harmless(tmp_path, capsys):
    """Names of a checkpoint, of an adapter, and of an error reach the terminal without their escapes."""
    evil = 'a\x1b]0;owned\x07\x1b[2J'
    torch.save({'state_dict': {evil: torch.ones(2)}, evil: evil, 'epoch': 1}, tmp_path / 'x.pth')
    shown = describe(inspect_file(str(tmp_path / 'x.pth')))
    assert '\\x1b' in shown and all(line.isprintable() for line in shown.splitlines())
    header = dict(methods=[dict(type=evil)], tune=[evil], trunk='eval', backbone=evil, base=dict(id=evil), classes=[evil],
                  metrics={evil: 1.}, versions={evil: evil}, extra={evil: evil})
    adapter_file.save(tmp_path / 'a.safetensors', {'w': torch.ones(2)}, header)
    shown = describe(inspect_file(str(tmp_path / 'a.safetensors')))
    assert '\\x1b' in shown and all(line.isprintable() for line in shown.splitlines())
    assert '\x1b' not in str(WeightFileError(evil, evil, evil))

    def fail(argv):
        raise ValueError(f'{evil}\n{evil}')
    assert run_cleanly(fail, []) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and error.strip().isprintable()
