# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation: the shipped recipes on a small backbone and small scenes, from training to the merged model."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmpetl.datasets import fetch, scenes
from mmpetl.training.run import test as run_test
from mmpetl.training.run import train as run_train

pytest.importorskip('mmseg', reason='requirements/dense.txt is not installed')
ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / 'configs/dense').glob('*.py'))
ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Scenes of drawings that are made here, a base file and a cache folder."""
    folder = tmp_path_factory.mktemp('dense')
    source = folder / 'quickdraw20'
    (source / 'images').mkdir(parents=True)
    (source / 'classes.txt').write_text('\n'.join('abcdefgh'))
    for part in ('fit', 'val', 'test'):
        lines = []
        for label in range(scenes.CLASSES):
            drawing = np.full((28, 28), 255, np.uint8)
            cv2.circle(drawing, (14, 14), 4 + label, 0, 1) if label % 2 else cv2.rectangle(drawing, (6, 6), (20, 10 + label), 0)
            cv2.imwrite(str(source / f'images/{part}{label}.png'), drawing)
            lines.append(f'images/{part}{label}.png {label}')
        (source / f'{part}.txt').write_text('\n'.join(lines))
    target = scenes.prepare_scenes(folder / 'scenes6', source, dict(train=4, val=2, test=2))
    stamp = (target / 'images/train/0000.jpg').stat().st_mtime_ns
    assert scenes.prepare_scenes(target, source, dict(train=4, val=2, test=2)) == target
    assert (target / 'images/train/0000.jpg').stat().st_mtime_ns == stamp and fetch.is_intact(target)
    from mmpetl.registry import MODELS
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type='mmpetl.VisionTransformer', arch=ARCH, img_size=224, patch_size=14,
                                 layer_scale_init_value=1e-5, out_type='featmap'))
    torch.save(backbone.state_dict(), folder / 'base.pth')
    return folder


def small(recipe, folder):
    """The recipe's file in small, as a config of its own."""
    path = folder / f'small_{recipe.name}'
    loaders = '\n'.join(f'{part}_dataloader = dict(num_workers=0, persistent_workers=False, batch_size=2, '
                        f"dataset=dict(data_root={str(folder / 'scenes6')!r}))" for part in ('train', 'val', 'test'))
    path.write_text(f"""_base_ = {str(recipe)!r}
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{ARCH}), init_cfg=dict(checkpoint={str(folder / 'base.pth')!r})),
    decode_head=dict(in_channels=32, channels=32))
{loaders}
""")
    return path


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda p: p.stem)
def test_from_training_to_the_merged_model(recipe, made, tmp_path):
    config, adapter, out = small(recipe, made), tmp_path / 'run/adapter.safetensors', tmp_path / 'merged.pth'
    options = ['--cfg-options', 'train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
    run_train([str(config), '--work-dir', str(tmp_path / 'run'), *options])
    scores = run_test([str(config), str(adapter), '--work-dir', str(tmp_path / 'test'), '--show-dir', 'seen'])
    assert 0 <= scores['mIoU'] <= 100 and list((tmp_path / 'test').rglob('seen/**/*.png'))
    cfg = Config.fromfile(str(config))
    if 'adaptformer' in recipe.stem:
        return
    from mmpetl.training.infer import infer
    with pytest.raises(ValueError, match=r'small_\w+-small_scenes6.py: the model labels pixels, and this predicts classes'):
        infer(str(config), str(adapter), str(next((made / 'scenes6/images/test').glob('*.jpg'))))
    # the merged file loads into the stock model of mmsegmentation, and says the same
    from mmpetl.commands.main import main
    from mmpetl.training.build import build_model, read_config
    assert main(['merge', str(config), str(adapter), '-o', str(out)]) == 0
    init_default_scope('mmseg')
    from mmseg.registry import MODELS as SEG
    plain = cfg.model.to_dict()
    plain['backbone'] = {**{k: v for k, v in plain['backbone'].items() if k not in ('petl', 'init_cfg', 'tune')},
                         'type': 'mmpretrain.VisionTransformer'}
    stock = SEG.build(plain).eval()
    stock.load_state_dict(torch.load(out, weights_only=True)['state_dict'], strict=True)
    import mmpetl
    ours = build_model(read_config(str(config)))
    ours.backbone.init_weights()
    mmpetl.load_adapter(ours, str(adapter))
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = ours.eval()(x, mode='tensor'), stock(x, mode='tensor')
        assert found.shape == (1, 7, 16, 16)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        # any size: the position table is resized, the map follows
        assert ours(torch.randn(1, 3, 140, 98), mode='tensor').shape == (1, 7, 10, 7)


@pytest.mark.parametrize('part', ['train', 'val', 'test'])
def test_masks_are_looked_at_before_a_run(part, made, tmp_path, monkeypatch, capsys):
    """Upstream names no file, finds it late, or scores a class that there is not as nothing."""
    scenes6 = tmp_path / 'scenes6'
    shutil.copytree(made / 'scenes6', scenes6)
    mask = sorted((scenes6 / 'labels' / part).glob('*.png'))[0]
    cv2.imwrite(str(mask), np.where(cv2.imread(str(mask), 0) > 0, 200, 0).astype(np.uint8))
    config = small(RECIPES[-1], made)
    root = [f'{name}_dataloader.dataset.data_root={scenes6}' for name in ('train', 'val', 'test')]
    said = rf'{part}_dataloader.dataset: 1 of \d masks do not fit: {mask} holds 200, but classes are 0..6, and 255 is'
    if part == 'test':  # a model without training shall do
        cfg = Config.fromfile(str(config))
        cfg.merge_from_dict({'model.backbone.petl': [], f'{part}_dataloader.dataset.data_root': str(scenes6)})
        from mmpetl.training.run import build_runner
        cfg.work_dir, cfg.train_dataloader, cfg.train_cfg, cfg.optim_wrapper, cfg.param_scheduler = (
            str(tmp_path / 'run'), None, None, None, None)
        with pytest.raises(ValueError, match=said):
            build_runner(cfg).test()
        return
    with pytest.raises(ValueError, match=said):
        run_train([str(config), '--work-dir', str(tmp_path / 'run'), '--cfg-options', *root])
    assert not list((tmp_path / 'run').glob('*.safetensors'))
    from mmpetl.commands.main import main
    monkeypatch.chdir(tmp_path)
    checked = tmp_path / 'checked.py'
    checked.write_text(f'_base_ = {str(config)!r}\n' + ''.join(
        f'{name}_dataloader = dict(dataset=dict(data_root={str(scenes6)!r}))\n' for name in ('train', 'val', 'test')))
    assert main(['data', 'check', str(checked)]) == 1
    said = capsys.readouterr().out
    assert 'checked.py: 8 pictures' in said and f'problem: unreadable: {mask} holds 200, but classes are 0..6' in said


@pytest.mark.parametrize('classes, more, fits', [(3, [], True), (1, [], False), (1, ['check_masks=False'], True)])
def test_masks_of_ones_own_as_the_page_has_them(classes, more, fits, made, tmp_path):
    """The page's config trains; masks of a single class are refused, unless nobody looks."""
    for part in ('train', 'val'):
        for kind in ('images', 'labels'):
            (tmp_path / 'roads' / kind / part).mkdir(parents=True)
        for i in range(4):
            ids = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % classes
            cv2.imwrite(str(tmp_path / f'roads/labels/{part}/{i}.png'), ids)
            cv2.imwrite(str(tmp_path / f'roads/images/{part}/{i}.jpg'), cv2.merge([ids * 90] * 3))
    page = (ROOT / 'docs/dense.md').read_text().split('## Your own pictures and masks')[1]
    block = page.split('```python\n')[1].split('```')[0]
    recipe = '../configs/dense/lora_dinov2-small_scenes6.py'
    assert recipe in block and '/data/roads' in block and '(224, 224)' in block
    config = tmp_path / 'own.py'
    config.write_text(block.replace(recipe, str(small(ROOT / 'docs' / recipe, made))).replace('/data/roads', str(tmp_path / 'roads'))
                      .replace('(224, 224)', '(64, 64)'))
    words = [str(config), '--work-dir', str(tmp_path / 'run'), *(['--cfg-options', *more] if more else [])]
    if fits:
        run_train(words)
        assert (tmp_path / 'run/adapter.safetensors').is_file()
    else:
        with pytest.raises(ValueError, match='there is nothing to tell apart'):
            run_train(words)


@pytest.mark.parametrize('backbone, neck, widths', [
    (dict(type='mmpetl.SwinTransformer', arch=dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4]), img_size=64,
          out_indices=(0, 1, 2, 3), pad_small_map=True), None, [16, 32, 64, 128]),
    (dict(type='mmpetl.VisionTransformer', arch={**ARCH, 'num_layers': 4}, img_size=64, patch_size=16, out_type='featmap',
          out_indices=[0, 1, 2, 3]), dict(type='Feature2Pyramid', embed_dim=32, norm_cfg=dict(type='BN')), [32] * 4),
], ids=['swin', 'vit'])
def test_upernet(backbone, neck, widths):
    """Every level reaches the head, and gradients reach the methods, at a size other than the built one too."""
    import mmseg.models  # noqa: F401  registers
    init_default_scope('mmseg')
    from mmseg.registry import MODELS as SEG
    head = dict(type='UPerHead', in_channels=widths, in_index=[0, 1, 2, 3], channels=16, num_classes=5,
                norm_cfg=dict(type='BN'), align_corners=False, loss_decode=dict(type='CrossEntropyLoss'))
    model = SEG.build(dict(type='EncoderDecoder', backbone={**backbone, 'petl': [dict(type='LoRA', rank=2)]}, neck=neck,
                           decode_head=head, train_cfg=dict(), test_cfg=dict(mode='whole')))
    out = model(torch.randn(2, 3, 64, 96), mode='tensor')
    assert out.shape[:2] == (2, 5) and out.shape[2] * 3 == out.shape[3] * 2
    out.square().mean().backward()
    trained = {n: p.grad for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained and all('petl' in n and g is not None for n, g in trained.items())


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda p: p.stem)
def test_recipe_says_what_it_trains(recipe):
    """The counts in its first lines are those of the model, at full size."""
    from mmpetl.costs.memory import on_meta
    from mmpetl.training.build import build_model, read_config
    from mmpetl.tuning import summary
    with on_meta():
        counted = summary(build_model(read_config(str(recipe)), weights=False))
    text = recipe.read_text()
    said = re.search(r'Trainable: (?:([\d,]+) parameters in \w+ and )?([\d,]+) ', text)
    assert counted.without_head == int((said.group(1) or '0').replace(',', '')), counted
    assert counted.head == int(said.group(2).replace(',', ''))
    assert f'python tools/train.py configs/dense/{recipe.name}' in text


def test_silhouettes_are_filled():
    drawing = np.full((40, 40), 255, np.uint8)
    cv2.circle(drawing, (20, 20), 10, 0, 1)
    filled = scenes.silhouette(drawing)
    assert filled[20, 20] == 1 and filled[2, 2] == 0 and 300 < filled.sum() < 700


def test_scenes_are_labelled_where_drawings_lie():
    drawing = np.full((28, 28), 255, np.uint8)
    cv2.circle(drawing, (14, 14), 8, 0, 1)
    image, labels = scenes.compose([(drawing, 3)], np.random.default_rng(0))
    assert image.shape == (224, 224, 3) and set(np.unique(labels)) == {0, 3} and (labels == 3).sum() > 1000
    again = scenes.compose([(drawing, 3)], np.random.default_rng(0))
    assert np.array_equal(image, again[0]) and np.array_equal(labels, again[1])


def test_absent_operations_are_named():
    """Detection needs compiled operations, which mmcv-lite lacks: a model that runs one says which."""
    import mmseg  # noqa: F401
    ops = pytest.importorskip('mmcv.ops')
    if not hasattr(__import__('sys').modules['mmcv._ext'], '__mmpetl_stub__'):
        pytest.skip('the full mmcv is installed')
    with pytest.raises(RuntimeError, match="mmcv-lite has no compiled operation 'nms': install the full mmcv"):
        ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.tensor([1.]), 0.5)
