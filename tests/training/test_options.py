# SPDX-License-Identifier: Apache-2.0
"""Options of the command line: dicts as a config writes them, and no change that nobody would read."""

import pytest
from mmengine.config import Config

from mmpetl.training.given import parse_options
from mmpetl.training.options import merge_options

READ = {
    "a=dict(type='LoRA', rank=4, layers=(0, 1))": dict(type='LoRA', rank=4, layers=(0, 1)),
    "a=[dict(type='LoRA'), {'type': 'VPT', 'deep': False}]": [dict(type='LoRA'), dict(type='VPT', deep=False)],
    "a={'0-5': 4, '6-11': None}": {'0-5': 4, '6-11': None},
    'a=dict(scale=-1e-3)': dict(scale=-1e-3),
    # MMEngine's rules
    'a=1e-3': 1e-3, 'a=[1,2]': [1, 2], 'a=1,2': [1, 2], 'a=(1,2)': (1, 2), 'a=true': True, 'a=adict(': 'adict(',
    'a=C:/x{1}.txt': 'C:/x{1}.txt', 'a=b=dict(': 'b=dict(',
}
UNREADABLE = ["a=dict(x=__import__('os').getcwd())", 'a=dict(x=', "a=dict(**{'x': 1})", "a={'x', 'y'}", 'a={**x}',
              'a=dict(x=y)', 'a=f(1,2)', 'a=dict(3)', f'a=dict({"[" * 9999})', f"a={{'x': {'-' * 9999}1}}"]
CONFIG = dict(rate=3, root='/data', steps=[dict(type='Load', how='fast')], own=dict(mine='x'), model=dict(type='A'),
              train_cfg=dict(max_epochs=3, val_interval=3), train_dataloader=dict(batch_size=2, dataset=dict(
                  data_root='/data', ann_file='/data/a.txt', pipeline=[dict(type='Load', how='fast')])))


@pytest.mark.parametrize('text', READ)
def test_values(text):
    found = parse_options([text])
    assert found == {'a': READ[text]} and type(found['a']) is type(READ[text])


@pytest.mark.parametrize('text', UNREADABLE, ids=[text[:30] for text in UNREADABLE])
def test_what_cannot_be_read_is_named_and_nothing_is_called(text):
    with pytest.raises(ValueError, match='cannot be read.*close every bracket') as error:
        parse_options([text])
    assert 'a=' in str(error.value) and '\n' not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize('key, places', [
    ('rate', 'train_cfg.max_epochs, train_cfg.val_interval: set that'),
    ('root', 'train_dataloader.dataset.data_root, train_dataloader.dataset.ann_file'),
    ('steps.0.how', 'train_dataloader.dataset.pipeline.0.how'),
    ('steps', 'train_dataloader.dataset.pipeline'),
])
def test_a_variable_of_the_file_is_no_option(key, places):
    """Its value was copied when the file was read: nothing would change, and nobody would say so."""
    with pytest.raises(ValueError, match=f'nobody reads {key.split(".")[0]}, a copy of what stands in .*{places}'):
        merge_options(Config(CONFIG), {key: 'new'})


def test_a_preprocessor_beside_the_models_own_is_no_option():
    cfg = dict(CONFIG, data_preprocessor=dict(mean=[0.]))
    merge_options(Config(cfg), {'data_preprocessor.mean': [1.]})
    for more in ({}, {'data_preprocessor': dict(mean=[0.])}):
        own = Config(dict(CONFIG, model=dict(type='A', data_preprocessor=dict(mean=[0.])), **more))
        with pytest.raises(ValueError, match='a copy of what stands in model.data_preprocessor: set that'):
            merge_options(own, {'data_preprocessor.mean': [1.]})


@pytest.mark.parametrize('key', ['own.mine', 'train_cfg.max_epochs', 'train_dataloader.dataset.data_root',
                                 'train_cfg.type', 'model.data_preprocessor'])
def test_what_is_read_or_may_be_is_taken(key):
    cfg = Config(CONFIG)
    merge_options(cfg, {key: 'new'})
    node = cfg
    for part in key.split('.'):
        node = node[part]
    assert node == 'new'
