# SPDX-License-Identifier: Apache-2.0
"""mmpetl infer: the scores of mmpetl.infer, one line per file."""

import json
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


@pytest.mark.parametrize('more, message', [(['--top', '0'], '--top must be a whole number >= 1, got 0'),
                                           (['nowhere.png'], 'nowhere.png: no such file')])
def test_errors(trained, capsys, more, message):
    config, adapter, files, _ = trained
    assert main(['infer', config, adapter, files[0], *more, '--device', 'cpu']) == 1
    assert message in capsys.readouterr().err
