# SPDX-License-Identifier: Apache-2.0
"""What docs/runs.md says about features that are computed once: its config trains as printed, its options are those."""

import inspect
import re
from pathlib import Path

import pytest
import toy_run
from toy_cache import quick_runner  # noqa: F401

from mmpetl.features.hook import FeatureCacheHook
from mmpetl.training import run

PAGE = (Path(__file__).parents[2] / 'docs/runs.md').read_text(encoding='utf-8')
SECTION = PAGE[PAGE.index('## Features computed once'):PAGE.index('## On a GPU')]
#: A config as ``data make`` writes it, in what matters here: it augments, and names its pipeline for tests.
BASE = """
arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
model = dict(model, backbone=dict(type='mmpetl.VisionTransformer', arch=arch, img_size=16, patch_size=8, petl=[]), head=dict(
    type='LinearClsHead', num_classes=2, in_channels=16, loss=dict(type='CrossEntropyLoss')))
test_pipeline = pipeline
train_dataloader = dict(train_dataloader, dataset=dict(dataset, pipeline=[
    pipeline[0], dict(type='RandomFlip', prob=0.5), pipeline[1]]))
log_level = 'INFO'
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's config, in which commands run."""
    config, = re.findall(r'```python\n# (\S+)\n(.*?)```', SECTION, re.S)
    base, = re.findall(r"_base_ = './(.*?)'", config[1])
    path = tmp_path / config[0]
    path.parent.mkdir(parents=True)
    toy_run.write(tmp_path, BASE).rename(path.with_name(base))
    path.write_text(config[1])
    monkeypatch.chdir(tmp_path)
    return path


def said(capfd, *words):
    """Lines about the cache of a run of ``mmpetl train``."""
    run.train([*map(str, words)])
    return re.findall(r'Feature cache.*', ''.join(capfd.readouterr()))


def test_the_config_trains_and_the_second_run_finds_the_features(folder, capfd):
    first, done = said(capfd, folder)
    assert '24 samples go through the base once' in first and 'MiB on disk (features/' in done and 'computed in' in done
    again, = said(capfd, folder, '--work-dir', 'again')
    assert 'found in' in again
    text = re.search(r'--set (custom_hooks\.2\.place=host)', SECTION)[1]
    _, done = said(capfd, folder, '--work-dir', 'host', '--set', text)
    assert 'MiB on host, computed' in done


def test_the_base_config_augments_and_is_refused(folder):
    line, = re.findall(r'train_dataloader = .*', folder.read_text())
    folder.write_text(folder.read_text().replace(line, ''))
    with pytest.raises(ValueError, match='RandomFlip in the pipeline of CustomDataset is random'):
        run.train([str(folder)])


def test_the_options_are_those_of_the_hook():
    rows = re.findall(r'^\| `(\w+)` \|', SECTION, re.M)
    assert sorted(rows) == sorted(inspect.signature(FeatureCacheHook).parameters)
