# SPDX-License-Identifier: Apache-2.0
"""Every config that ships, shrunk in width, depth, picture size and data, and in nothing else: types, transforms, hooks
and schedule stay. Data of the right form and a random base are written beside it."""

import copy
import functools
from pathlib import Path

import mmcv
import numpy as np
import small_backbones
import suite_data
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

from mmpetl.datasets.loading import read_bytes
from mmpetl.datasets.motion_clips import write_mp4
from mmpetl.datasets.tables import get_suite
from mmpetl.training.build import build_model
from mmpetl.training.tasks import apply_task, find_dicts
from mmpetl.tuning import find_backbone

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(
    str(p.relative_to(ROOT)) for p in (ROOT / 'configs').rglob('*.py') if not {'_base_', 'dense'} & {*p.parts}
    and '_' != p.name[0])  # tests/configs/test_dense.py has those of segmentation
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
#: Suite form -> the task that is tested.
TASKS = dict(vtab='kitti', fgvc='OxfordFlowers', elevater='mnist')


@functools.cache
def read(path: str) -> Config:
    """A shipped config; read once, so that whoever changes it takes a copy."""
    return Config.fromfile(str(ROOT / path))


def write_data(folder: Path, cfg: Config, images: int = 4) -> None:
    """A few pictures or clips in the form that the config's data sets read; ``cfg`` is pointed at them.

    ``images`` are trained on where the form leaves their number open.
    """
    if cfg.get('task'):
        suite, root = get_suite(cfg.task.suite), str(folder)
        name = TASKS.get(suite.name, 'pneumonia')
        if suite.form == 'vtab':
            suite_data.write_vtab(root, name, dict(train800=images, val200=2, test=3), suite=cfg.task.suite)
        elif suite.form == 'fgvc':
            suite_data.write_fgvc(root, name, dict(train=1, val=1, test=1))
        else:
            suite_data.write_elevater(root, name, dict(train=5, test=1), suite=cfg.task.suite)
        cfg.task.update(name=name, root=root)
        return
    for loader in (name for name in LOADERS if cfg.get(name)):
        dataset = cfg[loader].dataset
        dataset.data_root = str(folder)
        part, lines = Path(dataset.ann_file).stem, []
        for i in range(images if part == 'train' else 4):
            if cfg.default_scope == 'mmaction':
                name, frames = f'{part}_{i}.mp4', np.random.default_rng(i).integers(0, 256, (9 + 8 * i, 48, 64, 3))
                write_mp4(folder / name, np.repeat(frames, 3, 0).astype(np.uint8))
                lines.append(f'{folder / name} {i % 4}')
            else:
                name = f'{part}/{i}.png'
                suite_data.put(str(folder / name), suite_data.image_bytes(i, i, (30, 24)))
                lines.append(f'{name} {i % 4}')
        suite_data.put_text(str(folder / dataset.ann_file), lines)
        if isinstance(dataset.get('classes'), str):
            suite_data.put_text(str(folder / dataset.classes), [f'class {c}' for c in range(cfg.model.head.num_classes)])


def _shrink_backbone(cfg: Config) -> int:
    """Two narrow blocks; returns the width of the feature."""
    backbone = cfg.model.backbone
    kind = backbone.type.split('.')[-1]
    if width := small_backbones.shrink(backbone):
        return width
    if kind == 'VideoMAE':
        backbone.update(img_size=32, patch_size=8, embed_dims=32, depth=2, num_heads=2, mlp_ratio=2)
        return 32
    if 'Swin' in kind:
        small = dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2])
        backbone.update(dict(arch=small, window_size=(2, 2, 2), patch_size=(2, 2, 2)) if '3D' in kind else dict(
            arch=small, img_size=32, window_size=2, patch_size=2))
        return 128
    backbone.update(arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64), img_size=32,
                    patch_size=8)
    return 32


def _shrink_methods(cfg: Config) -> None:
    for method in cfg.model.backbone.petl:
        if isinstance(method.get('drop_path_rate'), list):
            method.drop_path_rate = method.drop_path_rate[:2]
        for key, small in (('num_tokens', 3), ('num_kv_tokens', 2), ('phm_dim', 4), ('phm_rank', 1),
                           ('num_channels', 4), ('width', 32), ('budget', 900)):
            if isinstance(method.get(key), int):
                method[key] = min(small, method[key]) if key != 'phm_dim' else small


def shrink(path: str, folder: Path, images: int = 4, **more: object) -> Path:
    """Write the shrunk config of ``path`` with its data and base into ``folder``; ``more`` is merged at the end.

    Returns:
        The config file.
    """
    cfg = copy.deepcopy(read(path))
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder, cfg, images)
    apply_task(cfg)
    width = _shrink_backbone(cfg)
    _shrink_methods(cfg)
    neck, head = cfg.model.get('neck') or {}, cfg.model.get('head') or cfg.model.cls_head
    if neck.get('type') == 'mmpetl.CLIPProjection':
        neck.update(in_channels=width, out_channels=16, checkpoint=None)
        width = 16
    if 'in_channels' in head:
        head.in_channels = 2 * width if any(m.type == 'DualPath' for m in cfg.model.backbone.petl) else width
    if head.get('projection'):
        head.projection.update(out_channels=16, checkpoint=None)
        width = 16
    if 'text_features' in head:
        _write_text_features(folder, head, width)
    _shrink_pipelines(cfg)
    cfg.merge_from_dict(more)
    _write_base(folder, cfg)
    cfg.pop('per_task', None)
    target = folder / 'config.py'
    # a dump would be laid out by yapf, for seconds
    target.write_text('\n'.join(f'{key} = {value!r}' for key, value in cfg.to_dict().items() if key != 'filename'))
    return target


def _shrink_pipelines(cfg: Config) -> None:
    for loader in LOADERS:
        if cfg.get(loader) is None:
            continue
        # FGVC's data sets have a hundred classes and more, and an image of each
        many = bool(cfg.get('task')) and get_suite(cfg.task.suite).form == 'fgvc'
        cfg[loader].update(batch_size=34 if many else 2, num_workers=0, persistent_workers=False)
        for dataset in _datasets(cfg[loader].dataset):
            for t in dataset.get('pipeline', ()):
                for key in ('scale', 'crop_size', 'size', 'input_size'):
                    if key in t:
                        t[key] = (32, 32) if isinstance(t[key], (tuple, list)) else 36 if t[key] == 256 else 32


def _datasets(node: ConfigDict) -> list:
    return [node, *(_datasets(node.dataset) if isinstance(node.get('dataset'), dict) else [])]


def _write_text_features(folder: Path, head: ConfigDict, width: int) -> None:
    drawn = torch.randn(head.num_classes, width, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.functional.normalize(drawn, dim=-1).numpy()
    head.text_features = str(folder / 'text.npz')
    if 'VideoTextHead' in head.type or 'ZeroShotHead' in head.type:
        head.scale = 5.  # at CLIP's 100 random features are all of one class, whatever the input
    np.savez(head.text_features, weight=weight, class_names=[f'class {c}' for c in range(head.num_classes)])


def _write_base(folder: Path, cfg: Config) -> None:
    """A random base as the weight file that ``init_cfg`` names, or by its name."""
    if small_backbones.by_name(cfg.model.backbone):
        small_backbones.write(cfg.model.backbone, folder)
        return
    torch.manual_seed(0)
    model = build_model(cfg, weights=False)
    backbone = find_backbone(model)[0]
    backbone.init_weights()
    state = {k: v + 0.02 * torch.randn_like(v) if v.is_floating_point() else v for k, v in backbone.state_dict().items()
             if not k.startswith('petl.')}
    torch.save({'state_dict': state}, folder / 'base.pth')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(folder / 'base.pth'))


def stir(cfg: Config, seed: int = 1) -> torch.nn.Module:
    """The model of a config with base, its adapter moved away from the start as training would."""
    torch.manual_seed(seed)
    init_default_scope(cfg.default_scope)
    model = build_model(cfg)
    model.init_weights()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def array_of(path: str) -> np.ndarray:
    """A file as a user's own code reads it: RGB."""
    if path.endswith('.mp4'):
        import av
        with av.open(path) as container:
            return np.stack([f.to_ndarray(format='rgb24') for f in container.decode(video=0)])
    return mmcv.imfrombytes(read_bytes(path), backend='pillow', channel_order='rgb')


def cover(features: dict) -> set:
    """A small set of configs in which every feature of every config occurs: greedily the one with most that are new.

    Args:
        features: Config -> its features.
    """
    left, chosen = set().union(*features.values()), set()
    while left:
        best = max(features, key=lambda path: (len(features[path] & left), path))
        chosen.add(best)
        left -= features[best]
    return chosen


def paths_of(cfg: Config) -> list:
    """The files of the config's test set, in order."""
    from mmengine.registry import DATASETS
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    return [dataset.get_data_info(i).get('img_path') or dataset.get_data_info(i)['filename'] for i in range(len(dataset))]


__all__ = ['CONFIGS', 'ROOT', 'array_of', 'cover', 'find_dicts', 'paths_of', 'read', 'shrink', 'stir']
