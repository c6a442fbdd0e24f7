# SPDX-License-Identifier: Apache-2.0
"""mmpetl infer: the scores of mmpetl.infer, one line per file."""

import json
import re
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

import mmpetl
from mmpetl.commands.main import main
from mmpetl.tuning import write_adapter

sys.path.insert(0, str(Path(__file__).parents[1]))
import shipped  # noqa: E402


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    config = str(shipped.shrink('configs/quickstart/lora.py', folder))
    cfg = Config.fromfile(config)
    model = shipped.stir(cfg)
    names = [f'class {c}' for c in range(model.head.num_classes)]
    write_adapter(model, str(folder / 'adapter.safetensors'), classes=names)
    return config, str(folder / 'adapter.safetensors'), shipped.paths_of(cfg), names


def test_lines_and_scores(trained, capsys):
    config, adapter, files, names = trained
    wanted = mmpetl.infer(config, adapter, files, device='cpu')
    capsys.readouterr()
    assert main(['infer', config, adapter, *files, '--device', 'cpu', '--top', '2']) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ': class ' in line]
    assert len(lines) == len(files)
    for line, result in zip(lines, wanted):
        assert line.startswith(f'{result["input"]}: {result["pred_class"]} {result["pred_score"]:.3f}, class ')
    folder = str(Path(files[0]).parent)
    assert main(['infer', config, adapter, folder, '--device', 'cpu', '--json']) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{')]
    by_file = {row['input']: row for row in rows}
    for result in wanted:
        row = by_file[str(result['input'])]
        assert row['pred_class'] == names[row['pred_label']]
        assert row['pred_scores'] == pytest.approx(result['pred_scores'].tolist(), abs=1e-5)


def test_options_of_the_config(trained, capsys):
    """An adapter of another rank is taken with the option that it was trained with."""
    config, adapter, files, names = trained
    words = ['infer', config, adapter, files[0], '--device', 'cpu', '--set']
    assert main([*words, 'model.backbone.petl.0.alpha=3']) == 1
    assert 'alpha=16 in the adapter and alpha=3 here' in capsys.readouterr().err
    assert main([*words, 'model.backbone.petl.0.alpha=16']) == 0
    assert ': class ' in capsys.readouterr().out


@pytest.fixture
def holed(trained, tmp_path):
    """A folder of two pictures, a file that is none, half a picture, and a folder."""
    for number, path in enumerate(trained[2][:2]):
        (tmp_path / f'{number}.png').write_bytes(Path(path).read_bytes())
    (tmp_path / 'list.csv').write_text('0.png,1')
    (tmp_path / '2.png').write_bytes(Path(trained[2][0]).read_bytes()[:60])
    (tmp_path / 'more').mkdir()
    return tmp_path


def test_one_unreadable_picture_stops_and_names_the_way_out(trained, holed, capsys):
    (holed / 'more').rmdir()
    words = ['infer', *trained[:2], '--device', 'cpu', str(holed)]
    assert main(words) == 1
    said = capsys.readouterr()
    assert re.search(r'error: .*2\.png.*, or leave it out by --skip-unreadable', said.err) and ': class ' not in said.out
    (holed / 'more').mkdir()
    assert main(words) == 1
    assert 'more: is a folder: give the files in it, or leave it out by --skip-unreadable' in capsys.readouterr().err


@pytest.mark.parametrize('more', [[], ['--batch-size', '1'], ['--json']])
def test_unreadable_pictures_are_left_out_named_and_counted(trained, holed, capsys, more):
    words = ['infer', *trained[:2], '--device', 'cpu', '--skip-unreadable', *more, str(holed)]
    wanted = mmpetl.infer(*trained[:2], [str(holed / '0.png'), str(holed / '1.png')], device='cpu')
    capsys.readouterr()
    assert main(words) == 0
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if str(holed) in line]
    assert len(lines) == 2 and all(result['pred_class'] in line for line, result in zip(lines, wanted))
    assert 'unreadable: ' not in said.out
    told = [line for line in said.err.splitlines() if line.startswith('unreadable: ')]
    # the folder is known before anything is decoded
    assert [Path(line.split(': ')[1].split(' ')[0]).name for line in told] == ['more', '2.png', 'list.csv']
    assert said.err.splitlines()[-1] == '3 unreadable files are left out'


def test_unreadable_files_are_left_out_in_python(trained, holed, monkeypatch):
    said = []
    monkeypatch.setattr('mmpetl.training.infer.print_log', lambda text, *_: said.append(text))
    files = [str(holed / name) for name in ('0.png', '2.png', 'list.csv', '1.png')]
    found = mmpetl.infer(*trained[:2], files, device='cpu', batch_size=3, skip_unreadable=True)
    assert [result['input'] for result in found] == [files[0], files[3]]
    assert [text.split('unreadable, left out: ')[1].split(': ')[0] for text in said] == files[1:3]
    for more, inputs, message in (({}, files, '2.png'), (dict(skip_unreadable=True), files[1:3], 'none of the 2 files can be read'),
                                  (dict(skip_unreadable='yes'), files, "skip_unreadable='yes' must be True or False")):
        with pytest.raises(ValueError, match=message) as error:
            mmpetl.infer(*trained[:2], inputs, device='cpu', **more)
        assert '\n' not in str(error.value)
    with pytest.raises(FileNotFoundError, match='nowhere.png: no such file'):
        mmpetl.infer(*trained[:2], [files[0], 'nowhere.png'], device='cpu', skip_unreadable=True)


def test_nothing_readable_or_a_name_mistyped_is_an_error(trained, holed, capsys):
    for name in ('0.png', '1.png'):
        (holed / name).write_bytes(b'no picture')
    words = ['infer', *trained[:2], '--device', 'cpu', '--skip-unreadable', str(holed)]
    assert main(words) == 1
    assert 'error: none of the 5 files can be read: give others' in capsys.readouterr().err
    assert main([*words, 'nowhere.png']) == 1
    assert 'nowhere.png: no such file' in capsys.readouterr().err


@pytest.mark.parametrize('more, message', [(['--top', '0'], '--top must be a whole number >= 1, got 0'),
                                           (['--top', '99'], r'--top 99: the model has \d+ classes, give at most as many'),
                                           (['nowhere.png'], 'nowhere.png: no such file')])
def test_errors(trained, capsys, more, message):
    config, adapter, files, _ = trained
    assert main(['infer', config, adapter, files[0], *more, '--device', 'cpu']) == 1
    assert re.search(message, capsys.readouterr().err)
