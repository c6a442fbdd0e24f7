# SPDX-License-Identifier: Apache-2.0
"""The pages that a reader meets: the site builds without a warning, the notebook and the tutorials' Python run."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmpetl.weights.adapter_file import base_name

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / 'docs' / 'tutorials'


def python_blocks(page):
    """Blocks of Python of a page, in order."""
    return re.findall(r'```python\n(.*?)```', (TUTORIALS / page).read_text(encoding='utf-8'), re.S)


def test_site_builds(tmp_path):
    """Broken links, unknown anchors, pages that are missing and docstrings that cannot be read are warnings, which
    --strict makes errors."""
    pytest.importorskip('mkdocs', reason='requirements/docs.txt is not installed')
    done = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '-d', str(tmp_path / 'site')],
                          cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'})
    assert not done.returncode, done.stdout[-3000:] + done.stderr[-3000:]
    api = (tmp_path / 'site/api/index.html').read_text(encoding='utf-8')
    import mmpetl
    from mmpetl import apis
    assert all(f'mmpetl.{name}' in api for name in apis.__all__)
    assert ':mod:' not in api and ':class:' not in api
    methods = (tmp_path / 'site/api/methods/index.html').read_text(encoding='utf-8')
    assert 'mmpetl.methods.lora.LoRA' in methods and 'mmpetl.methods.synqt.SynQT' in methods
    missing = [name for name in dir(mmpetl) if name != '__version__' and f'id="mmpetl{name.lower()}"' not in api]
    assert not missing, missing
    _reference_is_whole(tmp_path / 'site/api')
    assert 'First steps' in (tmp_path / 'site/tutorials/first_steps/index.html').read_text(encoding='utf-8')
    served = list((tmp_path / 'site').rglob('*.html'))
    assert not [page for page in served if 'fonts.googleapis' in page.read_text(encoding='utf-8')], 'fetched from elsewhere'


def _reference_is_whole(api):
    """Every registered type is in the list of types and, where it is a class, on a page with its arguments; every
    command and every option is on the page of commands."""
    from mmengine.registry import Registry

    from mmpetl import registry
    from mmpetl.commands.main import available
    types = html.unescape((api / 'types/index.html').read_text(encoding='utf-8'))
    pages = ''.join(page.read_text(encoding='utf-8') for page in api.rglob('*.html'))
    count = 0
    for key, found in vars(registry).items():
        if not isinstance(found, Registry) or key.startswith('ROOT_'):
            continue
        found.import_from_location()
        for name, item in found.module_dict.items():
            if item.__module__.startswith('mmpetl'):
                count += 1
                assert f'<code>{name}</code>' in types, f'{key}: {name}'
                place = f'{item.__module__}.{item.__name__}'
                assert item.__module__ == 'mmpetl.backbones' or f'id="{place}"' in pages, place
    assert count > 90
    commands = html.unescape((api / 'commands/index.html').read_text(encoding='utf-8'))
    assert not [name for name in available() if f'usage: mmpetl {name} ' not in commands]
    assert 'usage: mmpetl data make ' in commands and '--on-test' in commands and '--budget' in commands


def test_nav_leads_to_every_page():
    """No page is left out of the site's menu but method cards and decisions, which their lists link."""
    text = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8')
    pages = {p.relative_to(ROOT / 'docs').as_posix() for p in (ROOT / 'docs').rglob('*') if p.suffix in ('.md', '.ipynb')}
    left = {p for p in pages if p not in text}
    assert {p.split('/')[0] for p in left} <= {'methods', 'adr'}, sorted(left)
    assert yaml.safe_load(text)['hooks'] == ['tools/docs_site.py', 'tools/docs_reference.py']


def test_notebook_runs(tmp_path, monkeypatch):
    """As it stands, in one go; what it prints about the adapter file and the merge is asserted in its cells."""
    pytest.importorskip('timm')
    pytest.importorskip('sklearn')
    monkeypatch.chdir(tmp_path)
    cells = json.loads((TUTORIALS / 'first_steps.ipynb').read_text(encoding='utf-8'))['cells']
    code = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    assert len(code) >= 7 and all(cell['outputs'] or i == 0 for i, cell in enumerate(
        [cell for cell in cells if cell['cell_type'] == 'code'])), 'stored without its results'
    stored = json.dumps([cell.get('outputs') for cell in cells])
    assert f' tensors on {base_name({})}' in stored and stored.count('max |difference|') == 1, 'stored results of an earlier version'
    scope = {}
    for i, cell in enumerate(code):
        exec(compile(cell, f'first_steps.ipynb, cell {i}', 'exec'), scope)
    assert set(scope['rows']) == set(scope['METHODS']) and scope['rows']['linear probe'][0] == 325
    assert scope['rows']['LoRA'][1] > scope['rows']['linear probe'][1] + 3, scope['rows']


def test_page_for_users_of_peft_runs(tmp_path, monkeypatch):
    pytest.importorskip('timm')
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in python_blocks('peft.md'):
        exec(compile(block.replace('pretrained=True', 'pretrained=False'), 'peft.md', 'exec'), scope)
    assert (tmp_path / 'lora/adapter_config.json').is_file()


def test_page_for_users_of_openmmlab_runs(tmp_path):
    """The config that it prints builds, with upstream's own file as its base, and the types are those that it names."""
    from mmengine.config import Config

    from mmpetl.backbones.family import FAMILIES
    from mmpetl.registry import MODELS
    block, = python_blocks('openmmlab.md')
    (tmp_path / 'mine.py').write_text(block)
    cfg = Config.fromfile(str(tmp_path / 'mine.py'))
    cfg.model.backbone.update(img_size=32, arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64))
    cfg.model.head.in_channels = 32
    cfg.model.train_cfg = cfg.model.data_preprocessor = None
    model = MODELS.build({**cfg.model, '_scope_': 'mmpretrain'})
    assert list(model.backbone.petl) == ['lora']
    page = (TUTORIALS / 'openmmlab.md').read_text(encoding='utf-8')
    named = set(re.findall(r'`mmpetl\.(\w+)`', page))
    assert named - {'TIMM', 'HF'} == {t for entry in FAMILIES.values() for t in entry.types}


def _only_factors_and_head_moved(folder):
    import torch
    first, last = (torch.load(folder / f'epoch_{n}.pth', weights_only=False)['state_dict'] for n in (1, 2))
    moved = {key for key in first if not torch.equal(first[key], last[key])}
    assert moved and all(key.startswith('head.') or '.petl.' in key for key in moved), moved
    assert any('.petl.' in key for key in moved)


def test_stock_tools_train(tmp_path, monkeypatch):
    """`mim train mmpretrain CONFIG` runs this file of mmpretrain with these arguments; of a base with LoRA nothing but
    factors and head moves."""
    import runpy

    import mmpretrain
    from toy_run import write
    config = write(tmp_path, "model['backbone'].update(type='mmpetl.VisionTransformer', petl=[dict(type='LoRA', rank=2)])\n")
    tool = Path(mmpretrain.__file__).parent / '.mim/tools/train.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), str(config), '--launcher', 'none', '--work-dir', str(tmp_path / 'out'),
                                      '--no-persistent-workers'])
    runpy.run_path(str(tool), run_name='__main__')
    _only_factors_and_head_moved(tmp_path / 'out')


@pytest.mark.slow
def test_mim_trains(tmp_path):
    """The page's commands: openmim in an environment of its own that sees this one's packages, and the real `mim`."""
    from toy_run import command, write
    config = write(tmp_path, "model['backbone'].update(type='mmpetl.VisionTransformer', petl=[dict(type='LoRA', rank=2)])\n")
    page = (TUTORIALS / 'openmmlab.md').read_text(encoding='utf-8')
    script = re.search(r'```bash\n(python -m venv.*?)```', page, re.S)[1]
    script = re.sub(r'^python ', f'{sys.executable} ', script, flags=re.M).replace(
        'mmpretrain CONFIG', f'mmpretrain {config} --work-dir out --no-persistent-workers')
    done = command('bash', '-euc', script, cwd=tmp_path, timeout=900)
    assert not done.returncode, done.stderr[-3000:]
    assert 'Training finished successfully' in done.stdout
    _only_factors_and_head_moved(tmp_path / 'out')


def test_sizes_and_times_of_tutorials_are_those_that_stand_elsewhere():
    from mmpetl.datasets.sources import SOURCES
    assert f"the base: {SOURCES['dinov2-vits14'].size / 1e6:.0f} MB" in (TUTORIALS / 'pictures.md').read_text()
    minutes = re.search(r'five methods take (\d+ minutes) in all', (ROOT / 'docs/video.md').read_text())
    assert f'in {minutes[1]} on two cores' in (TUTORIALS / 'videos.md').read_text()


def test_forms_and_hooks_are_read():
    """Issue forms and pre-commit's file are well-formed, and the hooks run what the suite runs."""
    for path in [*(ROOT / '.github/ISSUE_TEMPLATE').glob('*.yml'), ROOT / '.pre-commit-config.yaml']:
        assert yaml.safe_load(path.read_text(encoding='utf-8')), path
    entries = [hook['entry'] for repo in yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
               for hook in repo['hooks']]
    assert entries == ['python -m ruff check', 'python -m mypy', 'python -m pytest -q tests/test_layering.py']


def test_decisions_are_numbered():
    files = sorted((ROOT / 'docs/adr').glob('*.md'))
    assert [int(path.name[:4]) for path in files] == list(range(1, len(files) + 1))
    assert all(path.read_text().startswith(f'# {int(path.name[:4])}. ') for path in files)
    # code names a decision by its file: numbers alone would go on pointing somewhere when it is renumbered
    for path in (ROOT / 'mmpetl').rglob('*.py'):
        for name in re.findall(r'docs/adr/([\w.-]+)', path.read_text()):
            assert (ROOT / 'docs/adr' / name.rstrip('.')).is_file(), f'{path}: {name}'
