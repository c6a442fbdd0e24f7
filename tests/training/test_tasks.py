# SPDX-License-Identifier: Apache-2.0
"""One config, any of the 44 data sets: what cfg.task rewrites, and the published parameter counts."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from mmpetl.datasets.tables import SUITES
from mmpetl.training.tasks import apply_task, find_dicts

ROOT = Path(__file__).parents[2]
FOLDERS = ('e2vpt', 'pevit', 'synqt', 'peers')
CONFIGS = sorted(str(p.relative_to(ROOT)) for folder in FOLDERS for p in (ROOT / 'configs' / folder).glob('*_*.py'))
KADAPT = 'configs/pevit/kadaptation_clip-vit-base-p32_openai-pre_1xb64-50e_elevater.py'
VTAB = 'configs/e2vpt/e2vpt_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py'


def load(path, **options):
    cfg = Config.fromfile(str(ROOT / path))
    cfg.merge_from_dict(options)
    return apply_task(cfg, options)


def on_meta(model):
    init_default_scope('mmpretrain')
    if 'Swin' in model['backbone']['type']:  # builds its drop-path rates with .item()
        return MODELS.build(model)
    with torch.device('meta'):
        return MODELS.build(model)


def trainable(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


# -- what is rewritten ------------------------------------------------------------------------------------------------

def test_task_name_decides_lists_classes_prompts_and_folder():
    cfg = load(VTAB, **{'task.name': 'patch_camelyon', 'task.root': '/somewhere'})
    train, test = next(find_dicts(cfg.train_dataloader, 'mmpetl.VTAB1k')), cfg.test_dataloader.dataset
    assert (train.task, train.split, train.data_root) == ('patch_camelyon', 'train800val200', '/somewhere')
    assert (test.task, test.split) == ('patch_camelyon', 'test')
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 2
    assert (cfg.model.backbone.petl[0].num_tokens, cfg.model.backbone.petl[0].num_kv_tokens) == (10, 10)
    assert cfg.work_dir == f'work_dirs/{Path(VTAB).stem}/patch_camelyon'
    search = load(VTAB, **{'task.name': 'svhn', 'task.phase': 'search', 'work_dir': 'mine'})
    assert next(find_dicts(search.train_dataloader, 'mmpetl.VTAB1k')).split == 'train800'
    assert search.val_dataloader.dataset.split == 'val200' and search.work_dir == 'mine'


def test_options_of_the_user_win_over_the_published_row():
    cfg = load(VTAB, **{'task.name': 'caltech101', 'model.backbone.petl.0.num_tokens': 3})
    assert (cfg.model.backbone.petl[0].num_tokens, cfg.model.backbone.petl[0].num_kv_tokens) == (3, 5)


def test_applying_twice_changes_nothing_and_no_task_is_no_change():
    once = load(KADAPT, **{'task.name': 'kitti-distance'})
    text = once.pretty_text
    assert apply_task(once).pretty_text == text
    plain = Config(dict(model=dict(head=dict(num_classes=3))))
    assert apply_task(plain).model.head.num_classes == 3


def test_elevater_shots_metric_and_squashed_images():
    cfg = load(KADAPT, **{'task.name': 'kitti-distance', 'task.shots': 20, 'task.shot_seed': 2})
    train = next(find_dicts(cfg.train_dataloader, 'mmpetl.Elevater'))
    assert (train.shots, train.shot_seed, train.split) == (20, 2, 'few')
    for pipeline in (train.pipeline, cfg.test_dataloader.dataset.pipeline):
        assert [t.type.split('.')[-1] for t in pipeline] == ['LoadImage', 'Resize', 'PackInputs']
        assert pipeline[1].scale == (224,
                                     224) and pipeline[1].interpolation == 'bicubic' and pipeline[1].backend == 'pillow'
    for name, metric in {
            'kitti-distance': 'mmpretrain.Accuracy',
            'dtd': 'mmpretrain.Accuracy',
            'oxford-iiit-pets': 'mmpetl.MeanPerClass',
            'hateful-memes': 'mmpetl.ROCAUC',
            'voc-2007-classification': 'mmpetl.ElevenPointAP'
    }.items():
        cfg = load(KADAPT, **{'task.name': name})
        assert [m['type'] for m in cfg.test_evaluator] == [metric]
    assert cfg.model.head.multi_label and cfg.model.head.loss.loss_weight == 1 / 20


def test_another_suite_brings_its_own_data():
    cfg = load(VTAB, **{
        'task.suite': 'elevater',
        'task.name': 'voc-2007-classification',
        'train_dataloader.batch_size': 7
    })
    train = next(find_dicts(cfg.train_dataloader, 'mmpetl.Elevater'))
    assert train.data_root == 'data/elevater' and cfg.train_dataloader.batch_size == 7
    assert cfg.data_preprocessor.mean[0] == pytest.approx(122.7709383)
    assert cfg.model.head.type == 'mmpetl.FeatureHead' and cfg.model.head.init_cfg.type == 'Kaiming'
    assert not list(find_dicts(cfg.test_dataloader, 'mmpetl.VTAB1k'))
    cfg = load(KADAPT, **{'task': 'fgvc/nabirds'})
    assert cfg.model.head.num_classes == 555 and cfg.test_dataloader.dataset.type == 'mmpetl.FGVC'


@pytest.mark.parametrize('options, message', [
    ({'task.name': 'cifar100'}, "VTAB-1k has no task 'cifar100'; did you mean 'cifar'"),
    ({'task.suite': 'vtb'}, "unknown suite 'vtb'; did you mean 'vtab'"),
    ({'task.phase': 'test'}, "task.phase='test' is none of search, final"),
    ({'task.seed': 1}, 'task.seed is no option'),
    ({'per_task': dict(columns=['a', 'b'], rows=dict(cifar=[1]))}, 'has 1 values for 2 columns')])
def test_bad_tasks_say_what_is_wrong(options, message):
    cfg = Config.fromfile(str(ROOT / VTAB))
    if 'per_task' in options:
        cfg.per_task = options.pop('per_task')
    cfg.merge_from_dict(options)
    with pytest.raises(ValueError, match=message):
        apply_task(cfg)


# -- published counts -------------------------------------------------------------------------------------------------

#: Method -> parameters in the image tower, mean over the 20 data sets as published (a truncated integer).
COUNTS = {
    'kadaptation': (50176, 79699),
    'adapter': (1208064, 1237587),
    'lora': (147456, 176979),
    'compacter': (48384, 77907),
    'linear': (0, 29523)
}
TOWERS = {32: 87849216, 16: 86192640}
FINETUNE_MEAN = {32: 87878739, 16: 86222163}


def without_features(cfg):
    """The model of a recipe whose head needs no file of text features to be built: they are a start, no parameters."""
    cfg.model.head.pop('text_features', None)
    return cfg.model


@pytest.mark.parametrize('patch', [32, 16])
@pytest.mark.parametrize('method', [*COUNTS, 'finetune'])
def test_trainable_parameters_of_all_20_data_sets(method, patch):
    path = f'configs/pevit/{method}_clip-vit-base-p{patch}_openai-pre_1xb64-50e_elevater.py'
    fixed, mean = COUNTS.get(method, (TOWERS[patch], FINETUNE_MEAN[patch]))
    model = on_meta(without_features(load(path)))
    assert trainable(model.backbone) + trainable(model.neck) == fixed
    totals = []
    for name, task in SUITES['elevater'].tasks.items():
        with torch.device('meta'):
            head = MODELS.build(without_features(load(path, **{'task.name': name})).head)
        assert trainable(head) == 513 * task.num_classes
        totals.append(fixed + trainable(head))
    assert int(sum(totals) / 20) == mean


@pytest.mark.parametrize('name, key, want', [
    ('fact-tt', None, 39734), ('fact-tk', None, 68985), ('synqt', None, None)])
def test_means_over_the_published_per_task_settings(name, key, want):
    """FacT's means over its 19 released settings; SynQT's three widths."""
    path = next(p for p in CONFIGS if f'/{name}_' in p)
    cfg = Config.fromfile(str(ROOT / path))
    sizes = {}
    for task, row in cfg.per_task.rows.items():
        if str(row) not in sizes:
            sizes[str(row)] = trainable(on_meta(load(path, **{'task.name': task}).model).backbone)
    counts = [sizes[str(row)] for row in cfg.per_task.rows.values()]
    assert len(counts) == 19
    if want:
        assert round(sum(counts) / 19) == want
    else:
        assert set(counts) == {2742637, 2632045, 2604397}


@pytest.mark.parametrize('name, want', [('vpt-deep_vit-base-p16_in21k', lambda p, *_: 9216 * p),
                                        ('vpt-shallow', lambda *_: 38400), ('vpt-deep_swin', lambda *_: 120320),
                                        ('e2vpt_swin', lambda p, k, *_: 12032 * (p + k)),
                                        ('e2vpt_vit-base-p16_mae', lambda p, k, *_: 9216 * (p + k)),
                                        ('ssf', lambda *_: 205824), ('convpass_', lambda *_: 327552),
                                        ('convpass-attn', lambda *_: 163776), ('lst', lambda *_: 2376492),
                                        ('bitfit', lambda *_: 102912), ('peers/lora', lambda *_: 294912),
                                        ('peers/adapter_', lambda *_: 156768), ('peers/full', lambda *_: 85798656)])
def test_counts_of_the_vtab_recipes(name, want):
    path = next(p for p in CONFIGS if name in p and 'vtab' in p)
    cfg = load(path, **{'task.name': 'caltech101'})
    row = cfg.get('per_task', {}).get('rows', {}).get('caltech101', (10, ))
    assert trainable(on_meta(cfg.model).backbone) == want(*row)
