# SPDX-License-Identifier: Apache-2.0
"""The model zoo: its files are what the recipes say, the recipes are what the models are, and OpenMMLab's reader takes
it."""

import functools
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
import model_zoo  # noqa: E402

NAMES = [path.stem for folder in model_zoo.FOLDERS for path in sorted((ROOT / 'configs' / folder).glob('*.py'))]
SAMPLE = ('kadaptation_clip-vit-base-p32_openai-pre_1xb64-50e_elevater',
          'patt-kv_video-swin-base_k400-in22k-pre_1xb16-8x2-coslr-70e_hmdb51')


@functools.cache
def recipes():
    """All of them; reading them takes seconds, which those who only collect the tests need not wait."""
    return model_zoo.recipes(compute=False)


def test_files_are_generated_from_the_recipes():
    """Every command, base, address, digest and published number; after a change: tools/model_zoo.py --write."""
    assert all(set(r.costs) == set(model_zoo.COSTS) for r in recipes())
    for name, text in model_zoo.files(recipes()).items():
        assert (ROOT / name).read_text(encoding='utf-8') == text, name


def test_every_recipe_is_in_the_zoo_once():
    listed = [r.path for r in recipes()]
    on_disk = {str(p.relative_to(ROOT)) for folder in model_zoo.FOLDERS
               for p in (ROOT / 'configs' / folder).glob('*.py')}
    assert len(listed) == len(set(listed)) and set(listed) == on_disk
    assert len({r.name for r in recipes()}) == len(recipes()), 'work folders are named by recipes'
    page = (ROOT / model_zoo.PAGE).read_text(encoding='utf-8')
    assert all(f'[{r.name}](../{r.path})' in page for r in recipes())


def test_numbers_are_published_or_absent():
    """A number stands where the header marks one as published, with its source; nothing is measured."""
    for r in recipes():
        doc = (ROOT / r.path).read_text(encoding='utf-8').split('"""')[1]
        assert bool(r.published) == bool(r.source), r.path
        for value in r.published.values():
            assert f'{value:.2f}' in doc or f'{value:g}' in doc, (r.path, value)
    found = {r.name: r.published for r in recipes()}
    assert found['e2vpt_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab'] == {
        'Natural': 80.01, 'Specialized': 84.43, 'Structured': 57.39, 'Top 1 Accuracy, mean of tasks': 71.42,
        'Top 1 Accuracy, mean of groups': 73.94}
    assert found['kadaptation_clip-vit-base-p32_openai-pre_1xb64-50e_elevater'] == {
        'Top 1 Accuracy, mean of tasks': 68.92}
    assert found['apt-400_videomae-base_k400-pre_8xb8-16x4-coslr-100e_hmdb51'] == {}


def test_a_size_is_known_or_said_to_be_unknown():
    """Of every base on the page, in its own table and in the metafiles; its parameters are those of the recipes."""
    page = (ROOT / model_zoo.PAGE).read_text(encoding='utf-8').split('## Bases')[1].split('## Data')[0]
    table = {row[0]: row for line in page.splitlines() if line.startswith('| ') for row in [line[2:-2].split(' | ')]}
    for r in recipes():
        row = table[r.base.name]
        assert row[4] == (f'{r.base.size:,} bytes' if r.base.size else 'unknown')
        assert f'{r.costs["Parameters"]:,}' in row[2].split(' or ')
    for folder in model_zoo.FOLDERS:
        for model in yaml.safe_load((ROOT / f'configs/{folder}/metafile.yml').read_text())['Models']:
            size = model['Metadata']['Base']['Size']
            assert size == 'unknown' or type(size) is int and size > 1e6


def test_openmmlab_reads_the_index():
    """mmpretrain's own reader, as mim and its model hub use it."""
    from modelindex.load_model_index import load
    index = load(str(ROOT / model_zoo.INDEX))
    index.build_models_with_collections()
    assert {m.name for m in index.models} == {r.name for r in recipes()}
    for model in index.models:
        assert (ROOT / model.config).is_file() and model.in_collection
        assert model.metadata.parameters > 1e7 and model.weights is None
        assert all(result.metrics and result.dataset for result in model.results or ())
    for collection in index.collections:
        assert (ROOT / collection.readme).is_file() and collection.paper['URL'].startswith('https://')
    assert set(yaml.safe_load((ROOT / model_zoo.INDEX).read_text())['Import']) == {
        f'configs/{folder}/metafile.yml' for folder in model_zoo.FOLDERS}


def check_costs(name):
    recipe, = (r for r in recipes() if r.name == name)
    assert model_zoo.costs(recipe.path) == recipe.costs


@pytest.mark.parametrize('name', SAMPLE)
def test_costs_are_those_of_the_models(name):
    check_costs(name)


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted({*NAMES} - {*SAMPLE}))
def test_costs_of_every_recipe_are_those_of_its_model(name):
    check_costs(name)
