# SPDX-License-Identifier: Apache-2.0
"""The configs of the small suite: what their first lines say, and that they fit every task of their suite file."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmpetl.costs.memory import on_meta
from mmpetl.datasets.tables import get_suite
from mmpetl.training.build import build_model
from mmpetl.training.tasks import apply_task
from mmpetl.tuning import summary

ROOT = Path(__file__).parents[2]
# numbers.py is run by benchmarks/benchmark_methods.py, which has tests of its own
CONFIGS = [p for p in sorted((ROOT / 'configs/small_suite').glob('*.py')) if p.stem != 'numbers']


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config(path):
    doc = path.read_text().split('"""')[1]
    relative = str(path.relative_to(ROOT))
    file = re.search(rf'mmpetl sweep {relative} --suite (\S+)', doc)[1]
    suite = get_suite(str(ROOT / file))
    for task in suite.tasks.values():
        cfg = Config.fromfile(str(path))
        assert Path(cfg.task.suite).resolve() == ROOT / file
        cfg.task.name = task.name
        apply_task(cfg)
        dataset = cfg.test_dataloader.dataset
        assert cfg.model.head.num_classes == task.num_classes and dataset.task == task.name
        assert dataset.data_root.endswith(f'.cache/mmpetl/small_suite/{suite.form}')
        assert {t.get('scale') or t.get('crop_size')
                for t in dataset.pipeline} >= {(56, 56) if suite.form == 'vtab' else 56}
    with on_meta():
        counted = summary(build_model(cfg, weights=False))
    numbers = [
        int(n.replace(',', '')) for n in re.findall(r'[\d,]*\d', doc[doc.index('Trainable: '):].split(' per class')[0])
    ]
    head = numbers.pop()
    assert counted.head == head * task.num_classes and counted.without_head == sum(numbers)
    assert cfg.sweep.seeds and cfg.test_dataloader.dataset.pipeline[0].type == 'mmpetl.LoadImage'
