# SPDX-License-Identifier: Apache-2.0
"""Errors in a loader's worker are the line that they are without workers: the file is named, no traceback."""

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

sys.path.insert(0, str(Path(__file__).parents[1]))
import bad_inputs  # noqa: E402
import toy_chance  # noqa: E402

from mmpetl.clean_errors import plain_error, run_cleanly  # noqa: E402
from mmpetl.training import run  # noqa: E402


@TRANSFORMS.register_module(force=True)
class Odd(BaseTransform):
    """A transform of a user's own that goes wrong."""

    def __init__(self, kind):
        self.kind = kind

    def transform(self, results):
        if self.kind == 'lines':
            raise ValueError('first line\n  second line')
        if self.kind == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == 'bare':
            raise RuntimeError
        return results[self.kind]


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('workers')
    path = toy_chance.write(folder)
    text = path.read_text() + '\ntrain_cfg.update(max_epochs=1)\n'
    good = next(folder.glob('data/*/*.png'))
    (folder / 'bad.png').write_bytes(b'\xff' + random.Random(0).randbytes(3000))
    for name, second in (('bad', 'bad.png'), ('gone', 'gone.png')):
        (folder / f'{name}.txt').write_text(f'{good} 0\n{folder / second} 1\n')
    shutil.copytree(folder / 'data', folder / 'noise')
    for file in (folder / 'noise').rglob('*.png'):
        file.write_bytes(good.read_bytes()[:200])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder, path, text


LIST = ("dataset.update(type='mmpetl.ListDataset', data_root='', ann_file='{}.txt'); dataset.pop('data_prefix'); "
        "dataset['pipeline'] = [dict(type='mmpetl.LoadImage'), dict(type='Resize', scale=(16, 16)), dict(type='PackInputs')]")
ODD = "dataset['pipeline'].insert(1, dict(type='Odd', kind='{}'))"
#: Changes of the training data -> what the line says, with and without workers.
ROWS = {
    LIST.format('bad'): ('bad.png cannot be decoded', 'fetch the file again'),
    LIST.format('gone'): ('gone.png', 'does not exist'),
    "dataset['data_root'] = 'noise'": ('failed to load image: noise/', '.png', 'LoadImageFromFile', 'mend'),
    ODD.format('lines'): ('first line second line (sample ', 'data/', '.png', 'Odd', 'mend'),
    ODD.format('nothing'): ('KeyError: ', 'nothing (sample ', 'data/', '.png', 'Odd', 'mend'),
    ODD.format('bare'): ('RuntimeError: (sample ', 'data/', '.png', 'Odd', 'mend'),
    ODD.format('kill'): ('a worker of a data loader was ended from outside', 'lower num_workers'),
}


@pytest.mark.parametrize('change, workers', [(change, n) for change in ROWS for n in (0, 1) if n or 'kill' not in change])
def test_the_file_is_named(toy, change, workers):
    folder, path, text = toy
    path.write_text(f'{text}dataset = dict(dataset, pipeline=[*pipeline])\n{change}\n'
                    f'train_dataloader.update(dataset=dataset, num_workers={workers})\n')
    shutil.rmtree('work', ignore_errors=True)
    status, lines = bad_inputs.outcome(lambda: run_cleanly(run.train, [path.name, '--work-dir', 'work']))
    line, = [line for line in lines if 'error: ' in line]
    assert status == 1 and 'Traceback' not in line and 'Caught' not in line
    assert all(word in line for word in ROWS[change]), line


@pytest.mark.parametrize('part', ['val', 'test'])
def test_the_file_is_named_in_every_loop(toy, part):
    """Validation inside a training, and a test."""
    folder, path, text = toy
    path.write_text(f"{text}{part}_dataloader = dict({part}_dataloader, dataset=dict(dataset, data_root='noise'), num_workers=1)\n")
    shutil.rmtree('loops', ignore_errors=True)
    words = [path.name, '--work-dir', 'loops']
    if part == 'test':
        assert run_cleanly(run.train, words) == 0
        words.insert(1, 'loops/adapter.safetensors')
    status, lines = bad_inputs.outcome(lambda: run_cleanly(getattr(run, 'test' if part == 'test' else 'train'), words))
    line, = [line for line in lines if 'error: ' in line]
    assert status == 1 and 'failed to load image: noise/' in line and '(sample ' in line and 'mend' in line, line


def test_only_errors_of_workers_are_rewritten():
    """Torch's own text, of an error that another one led to; the last one counts."""
    text = ('Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n'
            '  File "a.py", line 1, in f\n    g()\nKeyError: 3\n\nDuring handling of the above exception, another '
            'exception occurred:\n\nTraceback (most recent call last):\n  File "a.py", line 2, in f\n    h()\n'
            'mmpetl.weights.errors.WeightFileError: a.npz: cut off\n  (copy it again)\n')
    found = plain_error(ValueError(text))
    assert type(found) is ValueError and str(found) == 'a.npz: cut off (copy it again)'
    assert plain_error(ValueError('a line')) is None and plain_error(KeyError(3)) is None and plain_error(OSError()) is None
