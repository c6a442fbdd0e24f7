# SPDX-License-Identifier: Apache-2.0
"""Bad command lines of ``mmpetl``, in the process: one line that names the file or option, the value, and how to mend it."""

import json
import os
import random
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import bad_inputs  # noqa: E402
import bad_words  # noqa: E402
import toy_chance  # noqa: E402

from mmpetl.commands.main import main  # noqa: E402
from mmpetl.training import run  # noqa: E402


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    """A folder with a trained toy, and files that are damaged, foreign or empty."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('words')
    config = toy_chance.write(folder)
    config.write_text(config.read_text() + '\ntrain_cfg.update(max_epochs=1)\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run.train([str(config), '--work-dir', 'w'])
        shutil.copy('w/adapter.safetensors', 'a.safetensors')
        shutil.copy('w/epoch_1.pth', 'c.pth')
        picture = next(folder.glob('data/*/*.png'))
        shutil.copy(picture, 'a.png')
        noise = b'\xff' + random.Random(0).randbytes(3000)  # drawn anew, now and then a file of some kind
        for name, content in {
                'noise.pth': noise, 'noise.png': noise, 'bin.py': noise, 'empty.pth': b'', 'text.txt': b'hello\n',
                'cut.safetensors': Path('a.safetensors').read_bytes()[:-50], 'cut.pth': Path('c.pth').read_bytes()[:2000],
                'cutpic.png': picture.read_bytes()[:200], 'nomodel.py': b'x = 3\n', 'syntax.py': b'model = dict(\n',
                'utf16.py': 'x = 3\n'.encode('utf-16'), 'suite.json': b'{', 'list.csv': b'path,label\nnowhere.png,0\n',
                'rank.py': (config.read_text() + "\nmodel['backbone']['petl'][0]['rank'] = 4\n").encode(),
                'nan.csv': b'path,label\na.png,dark\nb.png,NaN\n', 'minus.csv': b'path,label\na.png,-1\n', 'blank.csv': b'path,label\na.png,\n',
                'group.csv': b'path,label,patient\na.png,0,nan\n',
                'ragged.csv': b'path,label\ndata/x.png,0,7\n', 'latin.csv': b'path,label\na.png,caf\xe9\n', 'nothing.txt': b'\n \n',
                'stock.py': (folder / 'toy.py').read_bytes()}.items():
            Path(name).write_bytes(content)
        Path('emptydir').mkdir()
        for number, shape in enumerate([(8, 8), (8, 8), (8, 8, 2), (8, 8, 5)]):  # one band or several
            folder_of = Path('bands', 'ab'[number % 2])
            folder_of.mkdir(parents=True, exist_ok=True)
            np.save(folder_of / f'{number}.npy', np.full(shape, 9, np.uint8))
        for name in ('loop.py', 'loop.pth', 'loopdir'):
            Path(name).symlink_to(name)
        os.mkfifo('pipe.pth')
        damaged_runs_and_sweeps()
        yield folder


def damaged_runs_and_sweeps():
    """Work dirs of the toy and folders of sweeps, each with one thing wrong; two sweeps that are planned only."""
    for name, file, content in (('w_noconfig', 'config.py', None), ('w_badconfig', 'config.py', b'model = dict(\n'),
                                ('w_badlog', 'scalars.json', b'\xff' + bytes(300))):
        shutil.copytree('w', name)
        path = next(Path(name).glob(f'*/vis_data/{file}'))
        path.write_bytes(content) if content else path.unlink()
    shutil.copytree('w', 'w_noadapter', ignore=shutil.ignore_patterns('*.safetensors', '*.pth'))
    shutil.copytree('w', 'w_cut')
    Path('w_cut/adapter.safetensors').write_bytes(Path('cut.safetensors').read_bytes())
    for name, content in dict(s_cut=b'{', s_short=b'{"suite": "vtab"}', s_list=b'[1]', s_noise=b'\xff\xfe').items():
        Path(name).mkdir()
        Path(name, 'sweep.json').write_bytes(content)
    for config, suite in ((bad_words.SWEEP, 'vtab'), (bad_words.ELEVATER, 'elevater')):
        assert main(['sweep', config, '--suite', suite, '--dry-run', '--work-dir', f'planned_{suite}']) == 0
    plan = json.loads(Path('planned_elevater/sweep.json').read_text())
    for name, change in dict(s_notask=dict(tasks=[]), s_task=dict(tasks=['foo']), s_noseed=dict(seeds=[])).items():
        Path(name).mkdir()
        Path(name, 'sweep.json').write_text(json.dumps({**plan, **change}))


@pytest.mark.parametrize('words, said', bad_words.ROWS, ids=[words for words, _ in bad_words.ROWS])
def test_a_bad_command_line_is_one_line(here, words, said):
    words = words.replace('SWEEP', bad_words.SWEEP).replace('ELEVATER', bad_words.ELEVATER)
    status, lines = bad_inputs.outcome(lambda: main(shlex.split(words)))
    lines = [line.replace(f'{here}/', '').replace(bad_words.SWEEP, 'SWEEP').replace(
        bad_words.ELEVATER, 'ELEVATER') for line in lines]
    problem = bad_inputs.fault(status, lines, said)
    assert not problem, problem
    assert not any((here / name).exists() for name in ('m.pth', 'm.safetensors', 'm.onnx', 'x.pth', 't.pth', 'o1', 'sw'))
