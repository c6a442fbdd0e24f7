# SPDX-License-Identifier: Apache-2.0
"""Every published recipe: what its docstring says, and two training steps at toy size on generated data of the right
form."""

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from mmpetl.costs.memory import on_meta
from mmpetl.datasets.tables import SUITES, get_task
from mmpetl.models.text_features import TextFeatures, save_text_features
from mmpetl.training.build import build_model
from mmpetl.training.tasks import apply_task, find_dicts
from mmpetl.tuning import summary

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests'))
import shipped  # noqa: E402
import small_backbones  # noqa: E402
import suite_data  # noqa: E402

FOLDERS = ('e2vpt', 'pevit', 'synqt', 'peers', 'backbones')
CONFIGS = sorted(str(p.relative_to(ROOT)) for folder in FOLDERS for p in (ROOT / 'configs' / folder).glob('*_*.py')
                 if not p.stem.endswith('_hmdb51'))  # tests/configs/test_video_recipes.py has those of videos
KADAPT = 'configs/pevit/kadaptation_clip-vit-base-p32_openai-pre_1xb64-50e_elevater.py'


def load(path, **options):
    cfg = copy.deepcopy(shipped.read(path))
    cfg.merge_from_dict(options)
    return apply_task(cfg, options)


@pytest.mark.parametrize('path', CONFIGS)
def test_config_says_what_it_is(path):
    """Docstring with the command, the trainable parameters, and an expectation marked published, measured or
    unknown."""
    doc = (ROOT / path).read_text().split('"""')[1]
    assert path in doc and 'Trainable' in doc and 'Expected' in doc and 'Measured: ' in doc
    expected = doc[doc.index('Expected'):]
    assert 'published' in expected or 'unknown' in expected
    cfg = shipped.read(path)
    assert cfg.default_scope == 'mmpretrain' and cfg.custom_imports.imports == ['mmpetl']
    if 'per_task' in cfg:
        assert set(cfg.per_task.rows) == set(SUITES[cfg.task.suite].tasks)


@pytest.mark.parametrize('path', [p for p in CONFIGS if '/backbones/' in p or '/peers/' in p and '/fact-' not in p])
def test_peers_train_as_many_parameters_as_they_say(path):
    """In methods and tuned, and per class; FacT's ranks, and with them its numbers, differ by task."""
    stated = (ROOT / path).read_text().split('Trainable:')[1].split('Expected')[0]
    numbers = {int(n.replace(',', '')) for n in re.findall(r'\d[\d,]*\d', stated)}
    cfg = load(path, **{'task.name': 'kitti'})
    with on_meta():
        counted = summary(build_model(cfg, weights=False))
    found = {sum(counted.methods.values()), counted.tuned, counted.head // cfg.model.head.num_classes} - {0}
    assert found <= numbers, found - numbers


def test_bases_have_as_many_parameters_as_they_say():
    """The backbone, with CLIP's its projection; DINOv2's file has positions for 518 px."""
    seen = 0
    for path in sorted((ROOT / 'configs/_base_/backbones').glob('*.py')):
        stated = re.search(r'\(([\d,]+) parameters\b', path.read_text())
        if stated:
            model = Config.fromfile(path).model
            parts = [model.backbone, *([model.neck] if 'CLIPProjection' in str(model.get('neck')) else [])]
            if path.stem in ('dinov2-small', 'seg_dinov2-small'):
                model.backbone.img_size = 518
            if 'model_name' in model.backbone:
                model.backbone.pretrained = False
            with on_meta():
                found = sum(p.numel() for part in parts for p in MODELS.build(part).parameters())
            assert stated[1] == f'{found:,}', path.stem
            seen += 1
    assert seen >= 30


PEVIT = [p for p in CONFIGS if '/pevit/' in p]


@pytest.mark.parametrize('path', PEVIT)
def test_pevit_starts_from_text_or_quotes_no_number(path):
    """All published scripts start the head from text; what starts at random has no published number beside it."""
    head, doc = load(path, **{'task.name': 'dtd'}).model.head, (ROOT / path).read_text().split('"""')[1]
    if 'random-head' in path or '_clip-' not in path:
        assert head.get('text_features') is None and 'published,' not in doc and 'starts at random' in doc
        return
    patch = 'p16' if 'p16' in path else 'p32'
    assert head.text_features.endswith(f'/text_features/openai-vit-b-{patch[1:]}/dtd.npz')
    assert f'python tools/text_features.py clip-vit-base-{patch} --suite elevater' in doc


@pytest.mark.parametrize('path', [p for p in PEVIT if '_clip-' in p and 'random' not in p and 'zeroshot' not in p])
def test_pevit_says_how_its_protocol_differs(path):
    """The released score is that of the best test epoch; two of its searches go one way."""
    cfg, doc = load(path, **{'task.name': 'dtd'}), ' '.join((ROOT / path).read_text().split('"""')[1].split())
    assert 'reports the best test epoch' in doc and 'here the last epoch counts' in doc
    assert cfg.train_cfg.val_interval == cfg.train_cfg.max_epochs and cfg.sweep.search == 'coarse_to_fine'
    kind = Path(path).stem.split('_')[0]
    assert ('first epoch alone' in doc) == bool(cfg.model.backbone.petl)
    assert ('towards smaller decays only' in doc) == (kind in ('lora', 'adapter'))


@pytest.mark.parametrize('path', [KADAPT, KADAPT.replace('kadaptation', 'zeroshot').replace('1xb64-50e_', '')])
def test_a_file_of_text_features_per_task_may_be_an_option(path):
    options = {'task.name': 'dtd', 'model.head.text_features': 'mine/{task}.npz'}
    assert load(path, **options).model.head.text_features == 'mine/dtd.npz'


def shrink(cfg, root, head_channels=32):
    """The config at toy size: 2 blocks of width 32, images of 32 px, batches of two, no workers, no weights."""
    backbone = cfg.model.backbone
    if width := small_backbones.shrink(backbone):
        backbone.pop('init_cfg', None)
        if 'model_name' in backbone:
            backbone.pretrained = False
        return shrink_data(cfg, root, width)
    swin = 'Swin' in backbone.type
    backbone.arch = (dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2]) if swin else
                     dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64))
    backbone.update(dict(img_size=32, window_size=2) if swin else dict(img_size=32, patch_size=8))
    backbone.pop('init_cfg')
    if swin:
        backbone.patch_size, head_channels = 2, 128
    for method in backbone.petl:
        if isinstance(method.get('drop_path_rate'), list):
            method.drop_path_rate = method.drop_path_rate[:2]
        if method.type == 'KAdaptation':
            method.phm_dim = 4
        if 'num_channels' in method:
            method.num_channels = 4
        if 'budget' in method:
            method.budget = 900
    if cfg.model.get('neck', {}).get('type') == 'mmpetl.CLIPProjection':
        cfg.model.neck.update(in_channels=32, out_channels=16, checkpoint=None)
        head_channels = 16
    return shrink_data(cfg, root, head_channels)


def shrink_data(cfg, root, head_channels):
    cfg.model.head.in_channels = head_channels
    if cfg.model.head.get('text_features'):
        assert cfg.model.head.text_features.endswith(f'/{cfg.task.name}.npz')
        cfg.model.head.text_features = write_features(root, cfg.model.head.num_classes, head_channels)
    for pipeline in [
            d.pipeline for loader in (cfg.train_dataloader, cfg.test_dataloader)
            for d in find_dicts(loader, cfg_type(cfg))
    ]:
        for t in pipeline:
            for key in ('scale', 'crop_size'):
                if key in t:
                    t[key] = (32, 32) if isinstance(t[key], (tuple, list)) else 32 if key == 'crop_size' else 36
    for name in ('train_dataloader', 'test_dataloader'):
        cfg[name].update(batch_size=2, num_workers=0)
        for dataset in find_dicts(cfg[name], cfg_type(cfg)):
            dataset.data_root = str(root)
    return cfg


def write_features(root, classes, width):
    path = str(Path(root) / f'text_{classes}_{width}.npz')
    weight = torch.nn.functional.normalize(torch.randn(classes, width), dim=-1)
    save_text_features(path, TextFeatures(weight, tuple(f'class {i}' for i in range(classes))))
    return path


def cfg_type(cfg):
    return SUITES[cfg.task.suite].dataset


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """One small task of every kind, on disk."""
    root = tmp_path_factory.mktemp('suites')
    suite_data.write_vtab(root, 'kitti', dict(train800=4, val200=2, test=2))
    suite_data.write_fgvc(root, 'OxfordFlowers', dict(train=1, val=1, test=1))
    for task in ('mnist', 'kitti-distance', 'voc-2007-classification', 'hateful-memes'):
        suite_data.write_elevater(root, task, dict(train=5, test=1))
    return root


def two_steps(cfg):
    """Two optimizer steps and one prediction, as the runner does them; returns what moved."""
    init_default_scope('mmpretrain')
    cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    model.init_weights()
    loader = iter(Runner.build_dataloader(dict(cfg.train_dataloader), seed=0))
    wrapper = Runner.build_optim_wrapper(type('R', (), dict(model=model, logger=None))(), cfg.optim_wrapper)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.train()
    for _ in range(2):
        losses = model.train_step(next(loader), wrapper)
        assert torch.isfinite(losses['loss'])
    model.eval()
    with torch.no_grad():
        samples = model.test_step(next(iter(Runner.build_dataloader(dict(cfg.test_dataloader), seed=0))))
    task = get_task(cfg.task.suite, cfg.task.name)
    assert samples[0].pred_score.shape == (task.num_classes, ) and torch.isfinite(samples[0].pred_score).all()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    return moved, {n for n, p in model.named_parameters() if p.requires_grad}


TASKS = {'vtab': ['kitti'], 'fgvc': ['OxfordFlowers'], 'elevater': ['mnist']}
EXTRA = [(KADAPT, 'kitti-distance'), (KADAPT, 'voc-2007-classification'), (KADAPT, 'hateful-memes')]


def features(path):
    """What decides how a recipe takes a step."""
    cfg = shipped.read(path)
    backbone, optimizer = cfg.model.backbone, cfg.optim_wrapper.optimizer
    return {backbone.type, f'optimizer {optimizer.type}', f'task {cfg.task.suite}', f'head {cfg.model.head.type}',
            f'tune {backbone.get("tune")}', *(f'method {m.type}' for m in backbone.get('petl') or [])}


def chosen():
    """By default one recipe of every kind takes two steps; tests/configs/test_lifecycle.py lets others live."""
    trained = [p for p in CONFIGS if 'zeroshot' not in p]
    often = shipped.cover({p: features(p) for p in trained})
    return [pytest.param(p, None, marks=() if p in often else pytest.mark.slow) for p in trained]


@pytest.mark.parametrize('path, name', chosen() + EXTRA)
def test_two_steps(path, name, data):
    suite = 'fgvc' if 'fgvc' in path else 'elevater' if 'elevater' in path else 'vtab'
    cfg = shrink(load(path, **{'task.name': name or TASKS[suite][0]}), data)
    moved, wanted = two_steps(cfg)
    assert moved <= wanted
    assert any(n.startswith('head.') for n in moved)
    if 'linear' not in path and 'shallow' not in path:
        assert any(n.startswith(('backbone.petl.', 'backbone.')) for n in moved)


def test_own_data_set_as_documented(tmp_path):
    """The example of docs/image_benchmarks.md, run as it stands there."""
    text = (ROOT / 'docs/image_benchmarks.md').read_text()
    code = text.split('```python\n')[1].split('```')[0]
    assert len(code.splitlines()) <= 10
    for part, count in (('train', 4), ('test', 2)):
        for i in range(count):
            suite_data.put(str(tmp_path / f'{part}/{i}.png'), suite_data.image_bytes(i, i))
        suite_data.put_text(str(tmp_path / f'{part}.txt'), [f'{part}/{i}.png {i * 3}' for i in range(count)])
    path = tmp_path / 'mine.py'
    path.write_text(code.replace('../configs', str(ROOT / 'configs')).replace('data/mine', str(tmp_path)))
    cfg = apply_task(Config.fromfile(str(path)))
    cfg.task = dict(suite='vtab', name='kitti')  # for the helper below only: toy size
    cfg.model.backbone.petl[0].num_tokens = 2
    for dataset in (cfg.train_dataloader.dataset, cfg.test_dataloader.dataset):
        dataset.pipeline[1].scale = (32, 32)
    cfg = shrink(cfg, tmp_path)
    init_default_scope('mmpretrain')
    cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    batch = next(iter(Runner.build_dataloader(dict(cfg.train_dataloader), seed=0)))
    assert model.head.num_classes == 12 and len(batch['inputs']) == 2
    data = model.data_preprocessor(batch, True)
    assert torch.isfinite(model.loss(**data)['loss'])


@pytest.mark.slow
@pytest.mark.parametrize('suite', ['vtab', 'fgvc', 'elevater'])
@pytest.mark.parametrize('path', [p for p in CONFIGS if 'zeroshot' not in p])
def test_two_steps_of_every_config_on_every_suite(path, suite, data):
    cfg = shrink(load(path, **{'task': f'{suite}/{TASKS[suite][0]}'}), data)
    moved, wanted = two_steps(cfg)
    assert moved <= wanted and any(n.startswith('head.') for n in moved)
