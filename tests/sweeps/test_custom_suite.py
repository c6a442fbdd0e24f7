# SPDX-License-Identifier: Apache-2.0
"""A suite of one's own: from the JSON file to the report."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from mmpetl.commands.main import main
from mmpetl.datasets import FGVC, VTAB1k
from mmpetl.datasets.tables import get_suite, get_task
from mmpetl.training.tasks import apply_task

sys.path.insert(0, str(Path(__file__).parents[1]))
import suite_data  # noqa: E402
import toy_sweep  # noqa: E402

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures('trials_here')


@pytest.fixture
def mine(tmp_path):
    """Two small data sets in VTAB's form and the file that names them."""
    data = json.loads((ROOT / 'docs/image_benchmarks.md').read_text().split('```json\n')[1].split('```')[0])
    for task, classes in (('quickdraw', 20), ('digits', 10)):
        for part, count in (('train800', 20), ('val200', 10), ('train800val200', 30), ('test', 20)):
            rows = []
            for i in range(count):
                name = f'images/{part}{i}.png'
                suite_data.put(
                    str(tmp_path / 'suites' / task / name), suite_data.image_bytes(i % classes, i + 1000 * len(part)))
                rows.append(f'{name} {i % classes}')
            suite_data.put_text(str(tmp_path / 'suites' / task / f'{part}.txt'), rows)
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps(data))
    return path


def test_sweep_and_report_over_an_own_suite(mine, tmp_path, capsys):
    assert main(['data', 'check', str(mine)]) == 0
    assert '2 of 2 tasks are in order' in capsys.readouterr().out
    config = toy_sweep.write_config(tmp_path / 'toy.py', sweep='grid={}, seeds=[1]')
    assert main(['sweep', config, '--suite', str(mine), '--work-dir', str(tmp_path / 's')]) == 0
    capsys.readouterr()
    assert main(['report', str(tmp_path / 's'), '--out', str(tmp_path / 'out')]) == 0
    text = capsys.readouterr().out
    for part in ('Drawings and digits', 'quickdraw (Drawings)', 'digits (Digits)', 'mean of 2', 'mean of 2 groups'):
        assert part in text
    rows = (tmp_path / 'out/mine.csv').read_text().splitlines()
    assert all(row.startswith('mine,toy,') for row in rows[1:]) and any('training memory' in row for row in rows)


def test_suite_file_is_read_and_checked(mine, tmp_path):
    suite = get_suite(str(mine))
    assert suite.form == 'vtab' and suite.groups == ('Drawings', 'Digits') and suite.root == str(tmp_path / 'suites')
    assert get_task(suite, 'digits').metric == 'mean_per_class'
    assert len(VTAB1k('quickdraw', 'val200', suite=str(mine))) == 10
    with pytest.raises(ValueError, match="FGVC reads suites of the form 'fgvc'"):
        FGVC('quickdraw', 'test', suite=str(mine))
    data = json.loads(mine.read_text())
    for change, message in ((dict(form='vtb'), "unknown form 'vtb'; did you mean 'vtab'"),
                            (dict(tasks={}), 'at least one task'), (dict(taks=1), "'taks' is no option"),
                            (dict(tasks=dict(a=dict(num_classes=1))), 'num_classes must be'),
                            (dict(tasks=dict(a=dict(num_classes=3, metric='auc'))), "unknown metric 'auc'"),
                            (dict(tasks=dict(a=dict(num_classes=3), b=dict(num_classes=3, group='g'))),
                             'every task a group'), (dict(tasks=dict(a=dict(num_classes=3, grup='g'))),
                                                     "did you mean 'group'")):
        mine.write_text(json.dumps({**data, **change}))
        with pytest.raises(ValueError, match=message):
            get_suite(str(mine))
    mine.write_text('{')
    with pytest.raises(ValueError, match='not valid JSON'):
        get_suite(str(mine))
    with pytest.raises(ValueError, match='does not exist'):
        get_suite('absent.json')


def test_config_takes_an_own_suite(mine):
    from mmengine.config import Config
    path = ROOT / 'configs/e2vpt/e2vpt_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py'
    cfg = Config.fromfile(str(path))
    options = {'task.suite': str(mine), 'task.name': 'digits'}
    cfg.merge_from_dict(options)
    apply_task(cfg, options)
    assert cfg.test_dataloader.dataset.suite == str(mine) and cfg.model.head.num_classes == 10
    assert cfg.test_dataloader.dataset.data_root == str(mine.parent / 'suites')
    assert [m['type'] for m in cfg.test_evaluator] == ['mmpetl.MeanPerClass']
    # The recipe is one of FGVC's or ELEVATER's: it takes VTAB's form for this suite.
    other = Config.fromfile(str(ROOT / 'configs/pevit/lora_clip-vit-base-p32_openai-pre_1xb64-50e_elevater.py'))
    other.merge_from_dict(options)
    apply_task(other, options)
    assert other.test_dataloader.dataset.type == 'mmpetl.VTAB1k' and other.test_dataloader.dataset.suite == str(mine)


def test_own_suite_in_elevaters_form_up_to_the_submission(tmp_path, capsys):
    root = tmp_path / 'data/shapes'
    for part, per_class in (('train', 5), ('test', 2)):
        rows = [(f'{i}.png', i % 3) for i in range(3 * per_class)]
        root.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root / f'{part}.zip', 'w') as archive:
            for i, (name, label) in enumerate(rows):
                archive.writestr(name, suite_data.image_bytes(label, i + 100 * per_class))
        suite_data.put_text(str(root / f'{part}.txt'), [f'{part}.zip@{name} {label}' for name, label in rows])
    path = tmp_path / 'few.json'
    path.write_text(json.dumps(dict(title='Few', form='elevater', root='data', tasks=dict(shapes=dict(num_classes=3)))))
    config = toy_sweep.write_config(tmp_path / 'toy.py', suite='elevater', sweep='grid={}, shot_seeds=[1]')
    folder = str(tmp_path / 's')
    assert main(['sweep', config, '--suite', str(path), '--shots', '2', '--work-dir', folder]) == 0
    capsys.readouterr()
    assert main(['submit', folder, '--name', 'mine']) == 0
    assert '1 data sets, seeds 1, 0 KiB' in capsys.readouterr().out
    entry, = json.loads(zipfile.ZipFile(f'{folder}/all_predictions.zip').read('all_predictions.json'))['data']
    assert entry['dataset_name'] == 'shapes' and entry['n_shot'] == 2 and entry['rnd_seeds'] == [1]
    assert [len(entry['predictions']), len(entry['predictions'][0]), len(entry['predictions'][0][0])] == [1, 6, 3]
    # The list says how many images there are: predictions of fewer or more are refused.
    suite_data.put_text(str(root / 'test.txt'), ['test.zip@0.png 0'])
    assert main(['submit', folder]) == 1
    assert 'the leaderboard wants (1, 1, 3)' in capsys.readouterr().err
