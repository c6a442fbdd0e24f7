# SPDX-License-Identifier: Apache-2.0
"""Prompts and knowledge from the toolkit's files: read as text, never executed."""

import json

import pytest
import torch

from mmpetl.models.clip_text import CLIPTextTower, encode_classes
from mmpetl.models.text_features import class_weights
from mmpetl.models.text_prompts import read_knowledge, read_prompts, suffixes

PROMPTS = '''
"""Prompts."""
import os
open(r'{trap}', 'w').write('executed')
animals_classes = ['cat', ['dog', 'hound']]
animals_templates = [
    'a photo of a {{}}.',
    'the {{}}.',
]
class_map = {{
    'pets-2': animals_classes,
    'bare': animals_classes,
}}
template_map = {{'pets-2': animals_templates}}
'''


def test_prompts_are_read_and_not_executed(tmp_path):
    path, trap = tmp_path / 'prompts.py', tmp_path / 'trap'
    path.write_text(PROMPTS.format(trap=trap))
    found = read_prompts(str(path))
    assert found['pets-2'] == (['cat', 'dog'], ['a photo of a {}.', 'the {}.'])
    assert found['bare'] == (['cat', 'dog'], ['a photo of a {}'])
    assert not trap.exists()


@pytest.mark.parametrize('text', ['x = 1', 'class_map = {"a": b}\ntemplate_map = {}', 'class_map = ('])
def test_another_form_is_one_line(tmp_path, text):
    path = tmp_path / 'prompts.py'
    path.write_text(text)
    with pytest.raises(ValueError, match='has not the form of') as error:
        read_prompts(str(path))
    assert '\n' not in str(error.value)


def test_missing_files_name_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match='mmpetl fetch elevater-prompts'):
        read_prompts(str(tmp_path / 'prompts.py'))
    with pytest.raises(FileNotFoundError, match='mmpetl fetch elevater-knowledge'):
        read_knowledge(str(tmp_path), 'mnist', ['gpt3'])
    with pytest.raises(ValueError, match="did you mean 'wordnet'"):
        read_knowledge(str(tmp_path), 'mnist', ['wordnett'])


def test_knowledge_by_kind(tmp_path):
    rows = [dict(classname='cat', def_wiki='A felid.', def_wn='feline mammal', path_wn=['cat', 'feline', 'carnivore', 'x']),
            dict(classname='dog', def_wiki=None, def_wn='', path_wn=[])]
    (tmp_path / 'pets_knowledge.tsv').write_text(json.dumps(rows))
    gpt3 = [dict(classname=c, gpt3=[' One.', ' Two.', ' Three.']) for c in ('cat', 'dog')]
    (tmp_path / 'GPT3_pets.tsv').write_text(json.dumps(gpt3))

    def read(*kinds):
        return read_knowledge(str(tmp_path), 'pets', kinds, gpt3_items=2)

    assert read('wiktionary') == dict(cat=['A felid.'], dog=[''])
    assert read('wordnet') == dict(cat=['feline mammal'], dog=[''])
    assert read('wordnet-path') == dict(cat=['cat feline carnivore'], dog=[''])
    assert read('gpt3') == dict(cat=[' One.', ' Two.'], dog=[' One.', ' Two.'])
    assert read('wiktionary', 'gpt3')['cat'] == ['A felid.', ' One.', ' Two.']


def test_text_is_appended_as_published():
    assert suffixes('cat', ['A felid, self-taught (small).', '']) == [' ; cat , A felid , self-taught ( small ) .', '']


def test_a_class_is_averaged_over_texts_and_templates():
    torch.manual_seed(0)
    tower = CLIPTextTower(100, 12, 64, 1, 1, 16).eval()
    torch.nn.init.normal_(tower.text_projection)

    def tokenize(texts):
        return torch.tensor([[1 + sum(map(ord, t)) % 90, 2, 99] for t in texts])

    got = encode_classes(tower, tokenize, ['cat', 'dog'], ['a {}', 'the {}'], suffixes=dict(cat=[' x', ' y']))
    with torch.no_grad():
        want = [class_weights(tower(tokenize(texts))[None])[0]
                for texts in (['a cat x', 'the cat x', 'a cat y', 'the cat y'], ['a dog', 'the dog'])]
    torch.testing.assert_close(got.weight, torch.stack(want))
