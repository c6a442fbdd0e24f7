# SPDX-License-Identifier: Apache-2.0
"""Bad configs, options and flags, through the command as users start it: one line that names the file or key, the value, and
how to mend it; nothing is taken in silence, nothing ends in a traceback."""

import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import bad_configs  # noqa: E402
import bad_inputs  # noqa: E402
import toy_chance  # noqa: E402

from mmpetl.clean_errors import run_cleanly  # noqa: E402
from mmpetl.training import run  # noqa: E402

ROWS = [*(('config', *row) for row in bad_configs.CONFIGS), *(('options', *row) for row in bad_configs.OPTIONS),
        *(('words', *row) for row in bad_configs.WORDS)]
#: What is allowed, beside what is refused: the refusals above do not come from something else.
ALLOWED = ["model['backbone']['petl'] = [dict(type='LoRA', alpha=-1)]", "model['backbone']['img_size'] = 32",
           "model['head']['topk'] = (5,)", 'spare = dict(type="x", y=3)']


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('bad')
    text = toy_chance.write(folder).read_text() + '\ntrain_cfg.update(max_epochs=1)\n'
    (folder / 'own.py').write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_cleanly(run.train, ['own.py', '--work-dir', 'good']) == 0
        shutil.copy('good/adapter.safetensors', 'adapter.safetensors')
        Path('noise.pth').write_bytes(random.Random(0).randbytes(3000))
        Path('empty.pth').touch()
        Path('loop.pth').symlink_to('loop.pth')
        os.mkfifo('pipe.pth')
        yield folder, text


def trained(toy, kind, given):
    """Status and lines of training with a bad input."""
    folder, text = toy
    (folder / 'own.py').write_text(text + (f'{given}\n' if kind == 'config' else ''))
    shutil.rmtree(folder / 'work', ignore_errors=True)
    more = dict(config=[], options=['--cfg-options', *given.split(' ')], words=given.split(' '))[kind]
    status, lines = bad_inputs.outcome(lambda: run_cleanly(run.train, ['own.py', '--work-dir', 'work', *more]))
    return status, [line.replace(f'{folder}/', '') for line in lines]


@pytest.mark.parametrize('kind, given, said', ROWS, ids=[f'{kind} {given}' for kind, given, _ in ROWS])
def test_a_bad_input_is_one_line(toy, kind, given, said):
    problem = bad_inputs.fault(*trained(toy, kind, given), said)
    assert not problem, problem
    assert not (toy[0] / 'work/adapter.safetensors').exists()


@pytest.mark.parametrize('given', ALLOWED)
def test_what_is_right_is_taken(toy, given):
    status, lines = trained(toy, 'config', given)
    assert status == 0, lines


def test_there_are_many():
    assert len({row[:2] for row in ROWS}) == len(ROWS) >= 250
