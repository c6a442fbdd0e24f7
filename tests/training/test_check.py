# SPDX-License-Identifier: Apache-2.0
"""Values that runs do not take, key by key; all configs that ship are free of faults. Through the command:
``test_bad_configs.py``."""

import importlib.util
import sys
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict

from mmpetl.training.build import read_config
from mmpetl.training.check import KEYS, POSITIVE, RATES, check_complete, check_config
from mmpetl.training.config import load_config
from mmpetl.training.options import merge_options

sys.path.insert(0, str(Path(__file__).parents[1]))
import shipped  # noqa: E402

NOT_POSITIVE = (0, -1, 1.5, '4', True, (2, 0), float('nan'))
NOT_RATES = (1, 1.5, -0.1, 'no', True, float('nan'), float('inf'))
ROWS = [
    *((dict(model={key: value}), f'model.{key}={value!r}') for key in POSITIVE for value in NOT_POSITIVE
      if (key, value) != ('interval', -1)),
    *((dict(model={key: value}), f'model.{key}={value!r}') for key in RATES for value in NOT_RATES),
    *((dict(train_dataloader=dict(dataset=dict(type='A'), num_workers=v)), f'train_dataloader.num_workers={v!r}')
      for v in (-1, 1.5, 'two', True)),
    *((dict(optim_wrapper=dict(optimizer=dict(lr=v))), f'optim_wrapper.optimizer.lr={v!r}')
      for v in (0, -1e-3, 1e30, float('inf'), float('nan'), '1e-3', None, True)),
    *((dict(optim_wrapper=dict(optimizer=dict(weight_decay=v))), f'optim_wrapper.optimizer.weight_decay={v!r}')
      for v in (-0.1, float('nan'), 'none', True)),
]


@pytest.mark.parametrize('given, said', ROWS, ids=lambda v: v if isinstance(v, str) else '')
def test_a_fault_is_named(given, said):
    """The form in which runs hold it, a Config, and a plain dict."""
    given = {'model': dict(type='A'), **given}
    for cfg in (Config(given), ConfigDict(given)):
        with pytest.raises(ValueError) as error:
            check_config(cfg, 'own.py')
        text = str(error.value)
        assert text.startswith('own.py: ') and said in text and '\n' not in text and 'give a' in text


def test_shipped_configs_are_free_of_faults():
    for path in shipped.CONFIGS:
        cfg = Config.fromfile(str(shipped.ROOT / path), format_python_code=False)
        check_config(cfg, path)
        check_complete(cfg, path, 'train' if cfg.get('train_cfg') else 'test')
    assert len(set(KEYS)) == len(KEYS)


@pytest.mark.parametrize('text', ['model = dict(', 'model = dict(a=b)', 'x = 1 / 0', 'x = len(3)', "_base_ = './own.py'",
                                  "x = 'a'.nothing"])
def test_a_config_that_cannot_be_read_is_named(text, tmp_path):
    path = tmp_path / 'own.py'
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_config(str(path))
    assert str(error.value).startswith(f'{path}: the config cannot be read') and '\n' not in str(error.value)


#: Folders of upstream's configs.
STOCK = {'mmpretrain': ('vision_transformer', 'swin_transformer', 'deit', 'dinov2', 'densenet', 'swav'),
         'mmaction': ('recognition/swin', 'recognition/videomae', 'recognition/timesformer', 'recognition/uniformer',
                      'recognition/tsn/custom_backbones')}
#: Those that upstream itself no longer runs, and why not.
BROKEN = {'vit-base-p16_4xb544-ipu_in1k': "nobody reads the key 'data'",
          'tsn_imagenet-pretrained-rn101-32x4d_8xb32-1x1x3-100e_kinetics400-rgb': "type='mmcls.ResNeXt'"}


@pytest.mark.parametrize('package', STOCK)
def test_stock_configs_are_taken(package):
    """Those of upstream, as they are: their schedules, hooks and backbones are ones that it knows."""
    root = Path(importlib.util.find_spec(package).origin).parent / '.mim/configs'
    for folder in STOCK[package]:
        paths = sorted((root / folder).glob('*.py'))
        assert paths, folder
        for path in paths:
            check = read_config if 'headless' in path.name else lambda name: check_config(Config.fromfile(name), name)
            if path.stem in BROKEN:
                with pytest.raises(ValueError, match=BROKEN[path.stem]):
                    check(str(path))
            else:
                check(str(path))


@pytest.mark.parametrize('given', [
    dict(param_scheduler=dict(type='MultiStepLR', milestones=[1, 2])), dict(cuda_graph=True),
    dict(custom_hooks=[dict(type='mmpetl.RunGuardHook', priority='LOW')]),
    dict(data_preprocessor=dict(type=dict, crop_size=(0.8, 1.0)))], ids=lambda given: next(iter(given)))
def test_what_upstream_takes_is_no_fault(given):
    cfg = dict(model=dict(type='mmpretrain.ImageClassifier', backbone=dict(type='mmpretrain.VisionTransformer')))
    check_config({**cfg, **given}, 'own.py')
    merge_options(Config(cfg), given)
