# SPDX-License-Identifier: Apache-2.0
"""Every shipped config lives its whole life: train, die, resume, test, merge, infer, with the same scores everywhere.

Shrunk in width, depth, picture size and data, and in nothing else (see ``tests/shipped.py``). By default one config of
every kind; ``-m slow`` takes them all.
"""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

import mmpetl
from mmpetl.clean_errors import run_cleanly
from mmpetl.training import run
from mmpetl.training.build import build_model, load_trained, read_config
from mmpetl.tuning import POINTS_THAT_STAY, find_backbone
from mmpetl.weights import adapter_file
from mmpetl.weights.io import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import shipped  # noqa: E402


@HOOKS.register_module(force=True)
class DieInTheMiddle(Hook):
    """Ends the run in the first iteration of its second epoch."""

    priority = 'VERY_LOW'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.epoch == 1 and not (Path(runner.work_dir) / 'died').exists():
            (Path(runner.work_dir) / 'died').touch()
            raise InterruptedError('died in the middle')


def kind(path):
    """Folder, backbone, data set and kind of methods of a config."""
    cfg = Config.fromfile(str(shipped.ROOT / path))
    backbone = cfg.model.backbone
    data = cfg.get('task', {}).get('suite') or cfg.test_dataloader.dataset.get('ann_file')
    methods = tuple(m.type for m in backbone.get('petl') or []) or ('tuned' if backbone.get('tune') else 'linear')
    return Path(path).parent.name, backbone.type, str(data), methods


def chosen():
    first = {}
    for path in shipped.CONFIGS:
        folder, backbone, data, methods = kind(path)
        # one config for every pair, and not for every triple: methods do not look at data, nor data at methods
        first.setdefault(('backbone and methods', backbone, methods), path)
        first.setdefault(('data', folder, data), path)
    default = set(first.values())
    return [pytest.param(p, marks=() if p in default else pytest.mark.slow, id=f'{Path(p).parent.name}-{Path(p).stem}')
            for p in shipped.CONFIGS]


def scores_of(config, file, folder, name):
    """Scores of ``tools/test.py``, one row per sample."""
    out = folder / f'{name}.pkl'
    words = [str(config), *([str(file)] if file else []), '--work-dir', str(folder / 'test'), '--out', str(out)]
    assert run_cleanly(run.test, words) == 0
    with open(out, 'rb') as handle:
        return np.stack([np.asarray(p['pred_score']) for p in pickle.load(handle)])


def without_pooled_norm(config):
    """Pre-training files have no norm of the pooled feature."""
    path = config.parent / 'base.pth'
    loaded = torch.load(path, weights_only=True)
    loaded['state_dict'] = {k: v for k, v in loaded['state_dict'].items() if not k.startswith(('ln2.', 'fc_norm.'))}
    torch.save(loaded, path)


def train_config(path, folder):
    config = shipped.shrink(path, folder)
    text = config.read_text()
    cfg = Config.fromfile(str(config))
    loop = cfg.train_cfg
    loop.update(max_epochs=2, **({'search_epochs': 1} if 'search_epochs' in loop or 'E2VPT' in str(loop.get('type'))
                                 else {}))
    if 'val_interval' in loop:
        loop.val_interval = min(loop.val_interval, 2)
    config.write_text(f'{text}\ntrain_cfg = {loop.to_dict()!r}\ncustom_hooks = [*custom_hooks, '
                      "dict(type='DieInTheMiddle')]\nlog_level = 'WARNING'\n")
    without_pooled_norm(config)
    return config


@pytest.mark.parametrize('path', chosen())
def test_whole_life(path, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    # laying out the text of configs takes longer than the rest of such a small life
    monkeypatch.setattr('mmengine.config.config.FormatCode', lambda text, **_: (text, False))
    config = train_config(path, tmp_path / 'run') if 'zeroshot' not in path else shipped.shrink(path, tmp_path / 'run')
    files = shipped.paths_of(Config.fromfile(str(config)))
    if 'zeroshot' in path:
        assert np.isfinite(scores_of(config, None, tmp_path, 'zero')).all()
        return
    work = tmp_path / 'work'
    words = [str(config), '--work-dir', str(work)]
    assert run_cleanly(run.train, words) == 1 and (work / 'died').exists()
    assert run_cleanly(run.train, words) == 1, 'a folder that holds a run was taken'
    assert run_cleanly(run.train, [*words, '--resume']) == 0
    adapter = work / 'adapter.safetensors'
    tensors, header = adapter_file.load(adapter)
    last = work / 'epoch_2.pth'
    assert load_file(str(last))['meta']['epoch'] == 2 and not list(work.glob('.*'))
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())

    scores = scores_of(config, adapter, tmp_path, 'adapter')
    np.testing.assert_allclose(scores_of(config, last, tmp_path, 'checkpoint'), scores, atol=1e-5)
    results = mmpetl.infer(str(config), str(adapter), files[:2], device='cpu')
    for result, wanted in zip(results, scores, strict=False):
        np.testing.assert_allclose(result['pred_scores'], wanted, atol=1e-5)
        if header['classes']:
            assert result['pred_class'] == header['classes'][result['pred_label']]
    merged_scores(config, adapter, tmp_path, scores)


def merged_scores(config, adapter, folder, scores):
    """A merged file has the same features in the stock backbone; what cannot be merged is refused by name."""
    out = folder / 'merged.pth'
    cfg = read_config(str(config))
    model = build_model(cfg)
    load_trained(model, str(adapter))
    backbone = find_backbone(model)[0]
    stays = [m for m in backbone.petl.values()
             if any(m.active(p, i) for p in POINTS_THAT_STAY for i in range(len(m.specs)))]
    if stays:
        with pytest.raises(ValueError, match='cannot be merged'):
            mmpetl.merge(model)
        return
    if not len(backbone.petl):
        return
    from mmpetl.training.build import write_state
    model.eval()
    report = mmpetl.merge(model)
    write_state(str(out), model.state_dict(), {})
    stock = cfg.copy()
    settings = stock.model.backbone
    kind = settings.type.split('.')[-1]
    plain = {k: v for k, v in settings.items() if k not in ('petl', 'tune', 'trunk', 'memory', 'with_cp', 'init_cfg')}
    scope, name = dict(VisionTransformer=('mmpretrain', 'VisionTransformer'), VideoMAE=('mmaction', 'VisionTransformer'),
                       SwinTransformer=('mmpretrain', 'SwinTransformer'),
                       SwinTransformer3D=('mmaction', 'SwinTransformer3D'),
                       CLIPVisionTransformer=('mmpretrain', 'VisionTransformer')).get(kind, (None, None))
    assert report.max_difference is not None and name, kind
    from mmengine.registry import MODELS
    if kind == 'CLIPVisionTransformer':
        plain = dict(dict(patch_cfg=dict(bias=False), pre_norm=True, norm_cfg=dict(type='LN', eps=1e-5),
                          layer_cfgs=dict(act_cfg=dict(type='QuickGELU'))),
                     **plain)
    body = MODELS.build(dict(plain, type=f'{scope}.{name}'))
    state = {k.removeprefix('backbone.'): v for k, v in load_file(str(out))['state_dict'].items()
             if k.startswith('backbone.')}
    body.load_state_dict(state, strict=True)
    body.eval()
    from mmpetl.tuning import probe_for
    probe = probe_for(backbone)
    with torch.no_grad():
        one, other = body(probe), backbone(probe)
    for a, b in zip(*[x if isinstance(x, (tuple, list)) else [x] for x in (one, other)]):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_every_config_is_here():
    """A config that ships and does not live its life fails."""
    here = {p.values[0] for p in chosen()}
    on_disk = {str(p.relative_to(shipped.ROOT)) for p in (shipped.ROOT / 'configs').rglob('*.py')
               if '_base_' not in p.parts}
    assert on_disk == here and len(here) > 100


@pytest.mark.parametrize('images', [1, 3, 16])
def test_a_few_images_train(images, tmp_path, monkeypatch):
    """Few-shot sizes with the quickstart's own batch and schedule: one iteration per epoch, a warm-up of none."""
    import suite_data
    monkeypatch.setattr('mmengine.config.config.FormatCode', lambda text, **_: (text, False))
    config = shipped.shrink('configs/quickstart/lora.py', tmp_path / 'run', **{'train_dataloader.batch_size': 32})
    cfg = Config.fromfile(str(config))
    dataset = cfg.train_dataloader.dataset
    lines = []
    for i in range(images):
        suite_data.put(f'{dataset.data_root}/few/{i}.png', suite_data.image_bytes(i, i, (30, 24)))
        lines.append(f'few/{i}.png {i % cfg.model.head.num_classes}')
    suite_data.put_text(f'{dataset.data_root}/{dataset.ann_file}', lines)
    work = tmp_path / 'work'
    assert run_cleanly(run.train, [str(config), '--work-dir', str(work)]) == 0
    header = adapter_file.read_header(work / 'adapter.safetensors')
    assert header['metrics'] and load_file(str(work / 'epoch_3.pth'))['meta']['iter'] == 3
