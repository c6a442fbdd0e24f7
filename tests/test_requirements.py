# SPDX-License-Identifier: Apache-2.0
"""The requirement files list what is imported, and nothing else without a word."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
#: Module -> the requirement that brings it, where the names differ.
BRINGS = {'PIL': 'pillow', 'cv2': 'opencv-python', 'yaml': 'pyyaml', 'mmcv': 'mmcv-lite', 'mmaction': 'mmaction2',
          'mmseg': 'mmsegmentation', 'sklearn': 'scikit-learn', 'open_clip': 'open_clip_torch', 'ray': 'ray',
          'imageio_ffmpeg': 'imageio-ffmpeg', 'mkdocs': 'mkdocs-material', 'google': 'onnx',
          'modelindex': 'model-index', 'xdist': 'pytest-xdist'}
#: What only a message or a refusal needs: installed by users who choose it.
CHOSEN = {'deepspeed', 'wandb', 'mlflow'}


def lines(name):
    """Requirements of a file, each with the comment lines above it."""
    why = ''
    for line in (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines():
        if line.startswith('#'):
            why += line
        elif line.strip():
            yield Requirement(line.split('#')[0].strip()), why
            why = ''


#: Scripts that others beside them import.
OURS = {path.stem for folder in ('tests', 'benchmarks', 'tools') for path in (ROOT / folder).rglob('*.py')}
FILES = [path.stem for path in sorted((ROOT / 'requirements').glob('*.txt')) if path.stem != 'constraints']
LISTED = {name: {re.sub('[-_.]+', '-', r.name).lower(): (r, why) for r, why in lines(name)} for name in FILES}


@functools.cache
def imported(folder):
    """Module -> (a file that imports it, whether it can do without: inside a function or a `try`)."""
    found = {}
    for path in sorted((ROOT / folder).rglob('*.py')):
        if '.mim' in path.parts:
            continue
        tree = ast.parse(path.read_text(encoding='utf-8'))
        lazy = {id(inner) for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Try))
                for inner in ast.walk(node)}
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and getattr(
                    node.func, 'attr', '') in ('import_module', 'importorskip'):
                names = [str(node.args[0].value)]
            for name in {name.split('.')[0] for name in names} - sys.stdlib_module_names - {'mmpetl'}:
                if name in OURS:
                    continue  # a file of ours beside it
                eager = id(node) not in lazy
                if name not in found or eager and (found[name][1] or 'backbones' not in path.parts):
                    found[name] = (str(path.relative_to(ROOT)), not eager)
    return found


def requirement(module):
    return re.sub('[-_.]+', '-', BRINGS.get(module, module)).lower()


@pytest.mark.parametrize('folder', ['mmpetl', 'tools', 'benchmarks', 'tests'])
def test_every_import_is_listed(folder):
    """What a module of the package imports when it is loaded is in runtime.txt; what it imports when it is used, and
    what tests and benchmarks import, in some file."""
    every = {name for listed in LISTED.values() for name in listed}
    modules = imported(folder)
    assert len(modules) >= 5
    for module, (where, lazy) in modules.items():
        if module in CHOSEN:
            continue
        assert requirement(module) in every, f'{where} imports {module}, which no requirement file names'
        if folder == 'mmpetl' and not lazy and where.split('/')[1] != 'backbones':
            assert requirement(module) in LISTED['runtime'], f'{where} imports {module}: it belongs to runtime.txt'


def test_the_backbones_of_other_libraries_are_optional():
    """Modules of mmpetl/backbones that load timm or transformers are imported for those backbones alone."""
    others = {module for module, (_, lazy) in imported('mmpetl').items()
              if not lazy and requirement(module) not in LISTED['runtime']}
    assert others <= {'timm', 'transformers'}


@pytest.mark.parametrize('name', FILES)
def test_every_line_is_imported_or_says_why(name):
    used = {requirement(module) for folder in ('mmpetl', 'tools', 'benchmarks', 'tests') for module in imported(folder)}
    for requirement_name, (_, why) in LISTED[name].items():
        assert requirement_name in used or why, f'requirements/{name}.txt: {requirement_name} is imported nowhere'
