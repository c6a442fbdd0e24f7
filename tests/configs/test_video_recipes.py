# SPDX-License-Identifier: Apache-2.0
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from cases import real_size
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted([*(ROOT / 'configs/vpetl').glob('*.py'), *(ROOT / 'configs/apt').glob('[!z]*.py'),
                  *(ROOT / 'configs/apt').glob('zero-i2v*.py'), *(ROOT / 'configs/backbones').glob('*_hmdb51.py')])
ZERO_SHOT = ROOT / 'configs/apt/zeroshot_clip-vit-base-p16_openai-pre_16x4_hmdb51.py'
NAMES = [path.stem for path in RECIPES]


def first(pattern):
    return next(path for path in RECIPES if re.search(pattern, path.stem))


read = lru_cache(None)(Config.fromfile)


def load(path):
    cfg = read(path)
    init_default_scope(cfg.default_scope)
    return cfg


def build(cfg):
    """The model without its memory: parameters on the meta device."""
    init_default_scope('mmaction')
    model = {
        **cfg.model, 'data_preprocessor': {
            k: v
            for k, v in cfg.model.data_preprocessor.items() if k != 'blending'
        }
    }
    if 'text_features' in model['cls_head']:
        model['cls_head'] = {**model['cls_head'], 'text_features': None}
    if 'model_name' in model['backbone']:
        model['backbone'] = {**model['backbone'], 'pretrained': False}
    with real_size():
        return MODELS.build(model)


@pytest.mark.parametrize('path', RECIPES, ids=NAMES)
def test_trainable_parameters_are_those_in_the_header(path):
    stated = int(re.search(r'^Trainable: ([\d,]+)', path.read_text(), re.M)[1].replace(',', ''))
    model = build(load(path))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == stated
    held = [n for n, p in model.cls_head.named_parameters() if not p.requires_grad]
    assert held == (['projection.proj'] if 'text' in path.stem else []), "CLIP's projection alone stays"


@pytest.mark.parametrize('path', RECIPES, ids=NAMES)
def test_header_names_its_file_and_what_is_expected(path):
    text = path.read_text()
    assert f'configs/{path.parent.name}/{path.name}' in text
    assert re.search(r'^Expected top-1.*: published .*, measured \w+', text, re.M)
    # The head's classes, the labels' check, and the name agree.
    cfg = load(path)
    classes = cfg.model.cls_head.num_classes
    assert classes == cfg.train_dataloader.dataset.num_classes == cfg.test_dataloader.dataset.num_classes
    assert classes == dict(hmdb51=51, ucf101=101, ssv2=174, k400=400)[path.stem.rsplit('_', 1)[1]]
    videos = int(re.search(r'xb(\d+)', path.stem)[1])
    epochs = int(re.search(r'-(\d+)e_', path.stem)[1])
    assert cfg.train_dataloader.batch_size == videos and cfg.train_cfg.max_epochs == epochs
    assert cfg.param_scheduler[-1]['end'] == epochs and cfg.param_scheduler[-1][
        'T_max'] == epochs - cfg.param_scheduler[0]['end']


def test_zero_shot_trains_nothing_and_tests_all_views():
    text, cfg = ZERO_SHOT.read_text(), load(ZERO_SHOT)
    assert f'configs/apt/{ZERO_SHOT.name}' in text and 'Trainable: 0.' in text and 'measured unknown' in text
    assert not [n for n, p in build(cfg).named_parameters() if p.requires_grad]
    trained = load(first('^aim-text'))
    assert cfg.test_dataloader == trained.test_dataloader and not cfg.get('train_dataloader')
    assert cfg.model.cls_head.num_classes == cfg.test_dataloader.dataset.num_classes == 51


def test_blending_can_be_built():
    """Mixup and CutMix by turns, and soft labels that the head takes."""
    init_default_scope('mmaction')
    blending = MODELS.build(load(first('^full_videomae-small.*hmdb51')).model.data_preprocessor.blending)
    assert [type(a).__name__ for a in blending.augments] == ['MixupBlending', 'CutmixBlending', 'NoneType']
    assert blending.probs == [.5, .5, 0]


@pytest.mark.parametrize('path', [p for p in RECIPES if p.stem.startswith(('apt', 'patt-kv-adaptformer', 'full'))],
                         ids=lambda path: path.stem)
def test_pipelines_can_be_built(path):
    cfg = load(path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        Compose(loader.dataset.pipeline)
        flips = [t.type for t in loader.dataset.pipeline].count('Flip')
        assert flips <= ('ssv2' not in path.stem), 'a class of ssv2 tells left from right'


VIEWS = dict(vpetl_hmdb51=4, vpetl_ssv2=4, vpetl_strong=12, apt_hmdb51=30, apt_ucf101=15, apt_ssv2=6, apt_k400=15,
             backbones_16x4=30, backbones_8x2=4)


@pytest.mark.parametrize('path', RECIPES, ids=NAMES)
def test_views(path):
    cfg = load(path)
    pipeline = cfg.test_dataloader.dataset.pipeline
    clips = next(t.num_clips for t in pipeline if t.type == 'mmpetl.VideoMAESampleFrames')
    crops = next(t.num_crops for t in pipeline if t.type == 'mmpetl.ViewCrops')
    family, data = path.parent.name, path.stem.rsplit('_', 1)[1]
    key = 'vpetl_strong' if family == 'vpetl' and 'strong' in path.stem else f'{family}_{data}'
    if family == 'backbones':
        key = f'backbones_{"16x4" if "16x4" in path.stem else "8x2"}'
    assert clips * crops == VIEWS[key]
    assert cfg.model.cls_head.average_clips == ('score' if family == 'vpetl' else 'prob')


def test_optimizer_groups_of_apt():
    """Prompts, their factors and the head's weight decay, one-dimensional tensors do not; nothing frozen is held."""
    cfg = load(first('^apt-400_videomae-small.*hmdb51'))
    model = build(cfg)
    wrapper = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type=cfg.optim_wrapper.constructor,
            optim_wrapper_cfg=dict(type='OptimWrapper', optimizer=cfg.optim_wrapper.optimizer),
            paramwise_cfg=cfg.optim_wrapper.paramwise_cfg))(
                model)
    groups = wrapper.optimizer.param_groups
    decayed = {id(p) for g in groups for p in g['params'] if g['weight_decay'] > 0}
    held = {id(p): p for g in groups for p in g['params']}
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert set(held) == {id(p) for p in named.values()}
    spared = {n for n, p in named.items() if id(p) not in decayed}
    assert spared == {'backbone.fc_norm.weight', 'backbone.fc_norm.bias', 'cls_head.fc_cls.bias'}


def test_layer_wise_rates_of_full_fine_tuning():
    cfg = load(first('^full_videomae-small.*hmdb51'))
    model = build(cfg)
    wrapper = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type=f'mmaction.{cfg.optim_wrapper.constructor}',
            optim_wrapper_cfg=dict(type='OptimWrapper', optimizer=cfg.optim_wrapper.optimizer),
            paramwise_cfg=cfg.optim_wrapper.paramwise_cfg))(
                model)
    rate = {id(p): g['lr'] for g in wrapper.optimizer.param_groups for p in g['params']}
    of = {n: rate[id(p)] for n, p in model.named_parameters()}
    assert of['cls_head.fc_cls.weight'] == pytest.approx(5e-4)
    assert of['backbone.blocks.11.attn.qkv.weight'] == pytest.approx(5e-4 * .7)
    assert of['backbone.blocks.0.norm1.weight'] == pytest.approx(5e-4 * .7**12)
    assert of['backbone.patch_embed.projection.weight'] == pytest.approx(5e-4 * .7**13)


@pytest.mark.parametrize('pattern, gpus, expected', [
    ('^patt-kv-adaptformer_.*hmdb51', 1, 0.00625),
    ('^patt-kv-adaptformer_.*hmdb51', 4, 0.025),
    ('^apt-400_videomae-base.*hmdb51', 8, 0.0125),
    ('^apt-400_videomae-small.*ssv2', 8, 0.025),
    ('^linear_videomae-base.*ucf101', 2, 0.000625),
    ('^full_videomae-base.*ucf101', 8, 2.5e-4),
])
def test_rates_follow_the_number_of_videos(pattern, gpus, expected):
    """MMEngine multiplies the rate by videos per step over ``base_batch_size``; these are the published effective
    rates."""
    cfg = load(first(pattern))
    assert cfg.auto_scale_lr.enable
    rate = cfg.optim_wrapper.optimizer.lr * cfg.train_dataloader.batch_size * gpus / cfg.auto_scale_lr.base_batch_size
    assert rate == pytest.approx(expected)


@pytest.mark.parametrize('pattern, peak, least', [
    ('^patt-kv-adaptformer_.*hmdb51', 0.00625, 0.),
    ('^apt-400_videomae-base.*hmdb51', 0.0125, 2.5e-7),
])
def test_learning_rate_curve(pattern, peak, least):
    """Warm-up from 0 over ten epochs, half a cosine after it, both per iteration."""
    import math

    from mmengine.registry import PARAM_SCHEDULERS
    cfg = load(first(pattern))
    iters = 20
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    optimizer.step()
    schedulers = []
    for entry in cfg.param_scheduler:
        entry = dict(entry)
        entry.pop('convert_to_iter_based')
        kind = PARAM_SCHEDULERS.get(entry.pop('type'))
        schedulers.append(kind.build_iter_from_epoch(optimizer=optimizer, epoch_length=iters, **entry))
    curve = []
    for _ in range(cfg.train_cfg.max_epochs * iters):
        curve.append(optimizer.param_groups[0]['lr'])
        for scheduler in schedulers:
            scheduler.step()
    warm, total = 10 * iters, cfg.train_cfg.max_epochs * iters
    for step in (0, 1, 57, 198):
        assert curve[step] == pytest.approx(peak * step / (warm - 1), rel=2e-2, abs=peak * 1e-4)
    for step in (warm, warm + 31, total // 2, total - 2):
        expected = least + (peak - least) / 2 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
        assert curve[step] == pytest.approx(expected, rel=1e-2, abs=peak * 1e-4)
