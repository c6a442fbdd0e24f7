# SPDX-License-Identifier: Apache-2.0
"""Every shipped config lives its whole life: train, die, resume, test, merge, infer, with the same scores everywhere.

Shrunk in width, depth, picture size and data, and in nothing else (see ``tests/shipped.py``). By default one config of
every kind; ``-m slow`` takes them all.
"""

import copy
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

import mmpetl
from mmpetl.clean_errors import run_cleanly
from mmpetl.commands.main import main
from mmpetl.merging import POINTS_THAT_STAY
from mmpetl.training import run
from mmpetl.training.build import build_model, load_trained, read_config
from mmpetl.training.lifecycle import prepare
from mmpetl.tuning import find_backbone, write_adapter
from mmpetl.weights import adapter_file
from mmpetl.weights.io import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import shipped  # noqa: E402
import small_backbones  # noqa: E402


@HOOKS.register_module(force=True)
class DieInTheMiddle(Hook):
    """Ends the run, once, in the first iteration of a second epoch; a run of several trainings dies in the first."""

    priority = 'VERY_LOW'
    mark: Path

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.epoch == 1 and not self.mark.exists():
            self.mark.touch()
            raise InterruptedError('died in the middle')


def kinds(path):
    """What decides how a config lives: folder, backbone, data, methods, model, head, loop, optimizer."""
    cfg = shipped.read(path)
    model, backbone = cfg.model, cfg.model.backbone
    data = cfg.get('task', {}).get('suite') or cfg.test_dataloader.dataset.get('ann_file')
    methods = [m.type for m in backbone.get('petl') or []] or ['tuned' if backbone.get('tune') else 'linear']
    head = model.get('head') or model.get('cls_head') or {}
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    SCHEDULES[path] = {key: cfg[key] for key in ('train_cfg', 'param_scheduler') if cfg.get(key)}
    found = dict(folder=Path(path).parent.name, backbone=backbone.type, data=str(data), head=head.get('type'),
                 neck=(model.get('neck') or {}).get('type'), loop=(cfg.get('train_cfg') or {}).get('type'),
                 optimizer=optimizer.get('type'))
    return {*found.items(), *(('method', name) for name in methods)}


def lean(path, found):
    """The kinds that decide what lives by default: of configs/backbones one by a name of timm and one of transformers."""
    if '/backbones/' not in path:
        return found
    return {k for k in found if k[0] == 'backbone' and k[1] in ('mmpetl.TIMM', 'mmpetl.HF')}


#: Config -> its schedule, as kinds() meets it.
SCHEDULES: dict = {}
#: Config -> its kinds; one of every kind runs by default.
KINDS = {path: kinds(path) for path in shipped.CONFIGS}
DEFAULT = shipped.cover({path: lean(path, found) for path, found in KINDS.items()})
#: One config of every data set and folder.
DATA = shipped.cover({path: {k for k in lean(path, found) if k[0] in ('folder', 'data')} for path, found in KINDS.items()})
#: One config of every backbone and method, for what takes long.
GRAPHS = shipped.cover({path: {k for k in found if k[0] in ('backbone', 'method')} for path, found in KINDS.items()})


GAIN, SHARE = r'score of [^<]* [+-]\d+\.\d\d over an empty picture', r'picture [+-]\d+\.\d\d, '
#: Config -> what the page of its run says of where the model looked: with prompts, keys of a clip, a side method.
PAGES = {
    'configs/e2vpt/e2vpt-prune_vit-base-p16_mocov3-pre_1xb64-coslr-100e_fgvc.py': f'{GAIN} without prompts: {SHARE}prompts ',
    'configs/video_demo/apt.py': f'{GAIN}: {SHARE}keys ',
    'configs/synqt/synqt_vit-base-p16_in21k-pre_1xb64-coslr-50e_vtab.py': 'No maps: a side method reads the frozen base without gradients'}


def chosen(default=DEFAULT, among=shipped.CONFIGS):
    return [pytest.param(p, marks=() if p in default else pytest.mark.slow, id=f'{Path(p).parent.name}-{Path(p).stem}')
            for p in among]


def scores_of(config, file, folder, name, *more):
    """Scores of ``tools/test.py``, one row per sample."""
    out = folder / f'{name}.pkl'
    words = [str(config), *([str(file)] if file else []), '--work-dir', str(folder / 'test'), '--out', str(out), *more]
    assert run_cleanly(run.test, words) == 0
    with open(out, 'rb') as handle:
        return np.stack([np.asarray(p['pred_score']) for p in pickle.load(handle)])


def without_pooled_norm(config):
    """Pre-training files have no norm of the pooled feature."""
    path = config.parent / 'base.pth'
    if small_backbones.by_name(Config.fromfile(str(config)).model.backbone):
        return
    loaded = torch.load(path, weights_only=True)
    loaded['state_dict'] = {k: v for k, v in loaded['state_dict'].items() if not k.startswith(('ln2.', 'fc_norm.'))}
    torch.save(loaded, path)


def train_config(path, folder, **more):
    """Two epochs of a shrunk config, as ``whole.py``, and as ``config.py``, which dies in its second epoch."""
    config = shipped.shrink(path, folder, **more)
    text = config.read_text()
    cfg = Config.fromfile(str(config))
    loop = cfg.train_cfg
    loop.update(max_epochs=2)
    if 'E2VPT' in str(loop.get('type')):
        loop.update(search_epochs=2, percents=(50, ))
    if 'val_interval' in loop:
        loop.val_interval = min(loop.val_interval, 2)
    text += f"\ntrain_cfg = {loop.to_dict()!r}\nlog_level = 'WARNING'\nrandomness = dict(randomness, seed=3)\n"
    (folder / 'whole.py').write_text(text)
    config.write_text(f"{text}custom_hooks = [*custom_hooks, dict(type='DieInTheMiddle')]\n")
    without_pooled_norm(config)
    return config


def lives_and_dies(config, work, *more):
    """Train, die, resume."""
    words = [str(config), '--work-dir', str(work), *more]
    DieInTheMiddle.mark = work.with_name(f'{work.name}_died')
    assert run_cleanly(run.train, words) == 1 and DieInTheMiddle.mark.exists()
    torch.manual_seed(99)
    assert run_cleanly(run.train, [*words, '--resume']) == 0


def same_bits(one, other):
    """Two runs ended with the same weights, scores and random numbers."""
    whole, found = load_file(str(one / 'epoch_2.pth')), load_file(str(next(iter(
        [*other.glob('epoch_2.pth'), *other.glob('iter_*.pth')]))))
    assert whole['meta']['iter'] == found['meta']['iter'] and whole['state_dict'].keys() == found['state_dict'].keys()
    assert all(torch.equal(v, found['state_dict'][k]) for k, v in whole['state_dict'].items())
    (tensors, header), (others, other_header) = (adapter_file.load(w / 'adapter.safetensors') for w in (one, other))
    assert tensors.keys() == others.keys() and all(torch.equal(v, others[k]) for k, v in tensors.items())
    assert header['metrics'] == other_header['metrics']


def rates(cfg, batches=3):
    """The rate of every iteration of a run with this schedule."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.)
    runner = type('R', (), dict(max_epochs=cfg.train_cfg.max_epochs, train_dataloader=range(batches),
                                logger=MMLogger('rates', log_level='ERROR'),
                                _train_loop=object.__new__(EpochBasedTrainLoop)))()
    schedules = Runner._build_param_scheduler(runner, copy.deepcopy(cfg.param_scheduler), optimizer)
    found = []
    for step in range(cfg.train_cfg.max_epochs * batches):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for schedule in schedules:
            if not schedule.by_epoch or (step + 1) % batches == 0:
                schedule.step()
    return found


def test_every_schedule_follows_a_longer_run_or_is_refused_with_how_to():
    """Half as many epochs again: no run stays at a schedule's last rate, and what the refusal advises is taken."""
    texts = {repr(found): path for path, found in SCHEDULES.items() if 'param_scheduler' in found}
    refused, followed = 0, 0
    for path in texts.values():
        cfg = Config(dict(copy.deepcopy(SCHEDULES[path]), model={}, train_dataloader=dict(batch_size=1)))
        planned = cfg.train_cfg.max_epochs
        cfg.train_cfg.max_epochs += planned // 2 + 1
        try:
            prepare(cfg)
            followed += 1
        except ValueError as error:
            found = re.match(r'param_scheduler.(\d+) \((\w+)\) ends at (\d+) and train_cfg.max_epochs is (\d+): .*Leave out '
                             r'its end and T_max', str(error))
            assert found and found[3] == str(planned) and found[4] == str(cfg.train_cfg.max_epochs), (path, error)
            for key in ('end', 'T_max'):
                cfg.param_scheduler[int(found[1])].pop(key, None)
            prepare(cfg)
            refused += 1
        seen = rates(cfg)
        rest = seen[-3 * (planned // 2 + 1):]
        assert 0 <= seen[-1] < 0.2 * max(seen) and len(set(rest)) > 1 and rest[0] > 2 * rest[-1], path
    assert refused > 5 and followed > 2, (refused, followed)


INSIDE = ('--cfg-options', 'default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=1',
          'default_hooks.checkpoint.max_keep_ckpts=1')


@pytest.mark.parametrize('path', chosen())
def test_whole_life(path, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    config = train_config(path, tmp_path / 'run') if 'zeroshot' not in path else shipped.shrink(path, tmp_path / 'run')
    files = shipped.paths_of(Config.fromfile(str(config)))
    if 'zeroshot' in path:
        assert np.isfinite(scores_of(config, None, tmp_path, 'zero')).all()
        return
    work = tmp_path / 'work'
    lives_and_dies(config, work)
    assert run_cleanly(run.train, [str(config), '--work-dir', str(work)]) == 1, 'a folder that holds a run was taken'
    assert run_cleanly(run.train, [str(tmp_path / 'run/whole.py'), '--work-dir', str(tmp_path / 'whole')]) == 0
    same_bits(tmp_path / 'whole', work)
    if path in DATA or path not in DEFAULT:  # of the others tests/hooks/test_resume.py has what is apart in them
        lives_and_dies(config, tmp_path / 'inside', *INSIDE)
        same_bits(tmp_path / 'whole', tmp_path / 'inside')

    adapter = work / 'adapter.safetensors'
    tensors, header = adapter_file.load(adapter)
    last = work / 'epoch_2.pth'
    assert load_file(str(last))['meta']['epoch'] == 2 and not list(work.glob('.*'))
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())

    scores = scores_of(config, adapter, tmp_path, 'adapter', '--show-dir', str(tmp_path / 'shown'), '--interval', '2')
    assert [p for p in (tmp_path / 'shown').rglob('*') if p.is_file()]
    np.testing.assert_allclose(scores_of(config, last, tmp_path, 'checkpoint'), scores, atol=1e-5)
    given = [*files[:2], *map(shipped.array_of, files[:2])]
    results = mmpetl.infer(str(config), str(adapter), given, device='cpu')
    for result, wanted in zip(results, [*scores[:2], *scores[:2]], strict=True):
        np.testing.assert_allclose(result['pred_scores'], wanted, atol=1e-5)
        if header['classes']:
            assert result['pred_class'] == header['classes'][result['pred_label']]
    if path in PAGES:
        assert main(['report', str(work), '--maps', '1']) == 0
        assert re.search(PAGES[path], (work / 'report.html').read_text(encoding='utf-8'))
    exported_scores(config, adapter, tmp_path, scores)
    merged_scores(config, adapter, tmp_path, scores)


@pytest.mark.parametrize('path', ['configs/quickstart/lora.py'])
def test_life_on_a_stored_base(path, tmp_path, monkeypatch):
    """With base_dtype='bf16': dies, resumes with the same bits, and has one adapter for both forms of the base."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    config, work = train_config(path, tmp_path / 'run'), tmp_path / 'work'
    for file in (config, tmp_path / 'run/whole.py'):
        (file.parent / f'full_{file.name}').write_text(file.read_text())
        file.write_text(f"{file.read_text()}model['backbone'].update(base_dtype='bf16')\n")
    lives_and_dies(config, work, '--amp')
    assert run_cleanly(run.train, [str(tmp_path / 'run/whole.py'), '--work-dir', str(tmp_path / 'whole'), '--amp']) == 0
    same_bits(tmp_path / 'whole', work)
    full, adapter = tmp_path / 'run/full_whole.py', work / 'adapter.safetensors'
    scores = scores_of(config, adapter, tmp_path, 'adapter')
    np.testing.assert_allclose(scores_of(config, work / 'epoch_2.pth', tmp_path, 'checkpoint'), scores, atol=1e-5)
    given = shipped.paths_of(Config.fromfile(str(config)))[:1]
    for result, wanted in zip(mmpetl.infer(str(config), str(adapter), given, device='cpu'), scores):
        np.testing.assert_allclose(result['pred_scores'], wanted, atol=1e-5)
    wide = scores_of(full, adapter, tmp_path, 'full')
    np.testing.assert_allclose(wide, scores, atol=0.02)
    assert not np.array_equal(wide, scores), 'the base was not stored'
    exported = tmp_path / 'exported.safetensors'
    assert main(['export', str(config), str(adapter), '-o', str(exported)]) == 0
    (tmp_path / 'run/plain.py').write_text(f"{full.read_text()}model['backbone'].update(petl=[], tune=[])\n")
    np.testing.assert_allclose(scores_of(tmp_path / 'run/plain.py', exported, tmp_path, 'exported'), wide, atol=1e-5)


def exported_scores(config, adapter, folder, scores):
    """The exported file has the same scores in the config without methods; what cannot be folded is refused by name."""
    out = folder / 'exported.safetensors'
    model = build_model(read_config(str(config)))
    backbone = find_backbone(model)[0]
    stays = any(m.active(p, i) for m in backbone.petl.values() for p in POINTS_THAT_STAY for i in range(len(m.specs)))
    status = main(['export', str(config), str(adapter), '-o', str(out)])
    assert status == (1 if stays else 0) and out.exists() is not stays
    if stays:
        return
    plain = folder / 'run/plain.py'
    text = (folder / 'run/whole.py').read_text()
    plain.write_text(f"{text}model['backbone'].update(petl=[], tune=[])\n")
    np.testing.assert_allclose(scores_of(plain, out, folder, 'exported'), scores, atol=1e-5)


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
                       **{mm: ('mmpretrain', mm) for mm in ('SwinTransformer', 'BEiTViT', 'DeiT3', 'ViTEVA02', 'MViT',
                                                            'SwinTransformerV2')},
                       **{mm: ('mmaction', mm) for mm in ('SwinTransformer3D', 'UniFormerV2')},
                       VideoMViT=('mmaction', 'MViT'), TIMM=('timm', kind), HF=('transformers', kind),
                       CLIPVisionTransformer=('mmpretrain', 'VisionTransformer')).get(kind, (None, None))
    assert report.max_difference is not None and name, kind
    from mmengine.registry import MODELS
    if kind == 'CLIPVisionTransformer':
        plain = dict(dict(patch_cfg=dict(bias=False), pre_norm=True, norm_cfg=dict(type='LN', eps=1e-5),
                          layer_cfgs=dict(act_cfg=dict(type='QuickGELU'))),
                     **plain)
    if small_backbones.by_name(settings):
        body, feature = small_backbones.stock(settings)
    else:
        body = feature = MODELS.build(dict(plain, type=f'{scope}.{name}'))
        body._load_state_dict_pre_hooks.clear()  # Swin V2's takes tables out that the state dict has
    state = {k.removeprefix('backbone.'): v for k, v in load_file(str(out))['state_dict'].items()
             if k.startswith('backbone.')}
    body.load_state_dict(state, strict=True)
    body.eval()
    from mmpetl.merging import probe_for
    probe = probe_for(backbone)
    with torch.no_grad():
        one, other = feature(probe), backbone(probe)
    for a, b in zip(*[x if isinstance(x, (tuple, list)) else [x] for x in (one, other)]):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_an_average_of_the_patches_lives_too(tmp_path, monkeypatch):
    """``out_type='avg_featmap'`` on a base whose file has no norm of the pooled feature: tested, merged, inferred."""
    monkeypatch.chdir(tmp_path)
    more = {'model.backbone.out_type': 'avg_featmap'}
    config = train_config('configs/quickstart/lora.py', tmp_path / 'run', **more)
    work = tmp_path / 'work'
    assert run_cleanly(run.train, [str(tmp_path / 'run/whole.py'), '--work-dir', str(work)]) == 0
    adapter = work / 'adapter.safetensors'
    scores = scores_of(config, adapter, tmp_path, 'adapter')
    np.testing.assert_allclose(scores_of(config, work / 'epoch_2.pth', tmp_path, 'checkpoint'), scores, atol=1e-5)
    files = shipped.paths_of(Config.fromfile(str(config)))
    for result, wanted in zip(mmpetl.infer(str(config), str(adapter), files[:2], device='cpu'), scores[:2], strict=True):
        np.testing.assert_allclose(result['pred_scores'], wanted, atol=1e-5)
    exported_scores(config, adapter, tmp_path, scores)
    merged_scores(config, adapter, tmp_path, scores)


def test_every_config_is_here():
    """A config that ships and does not live its life fails."""
    here = {p.values[0] for p in chosen()}
    on_disk = {str(p.relative_to(shipped.ROOT)) for p in (shipped.ROOT / 'configs').rglob('*.py')
               if not {'_base_', 'dense'} & {*p.parts}}
    assert on_disk == here and len(here) > 100


@pytest.mark.parametrize('images', [1, 3, 16])
@pytest.mark.parametrize('path', chosen(('configs/quickstart/lora.py', ), sorted(DATA | {'configs/quickstart/lora.py'})))
def test_a_few_images_train(path, images, tmp_path, capfd):
    """Few-shot sizes with the recipe's own batch and schedule: one iteration per epoch, a warm-up of none. A recipe that
    drops what fills no batch says so, and trains with what it advises."""
    if 'zeroshot' in path:
        pytest.skip('nothing trains')
    loader = shipped.read(path).train_dataloader
    batch = loader.batch_size
    config = train_config(path, tmp_path / 'run', images=images, **{'train_dataloader.batch_size': batch})
    work = tmp_path / 'work'
    words = [str(tmp_path / 'run/whole.py'), '--work-dir', str(work)]
    status = run_cleanly(run.train, words)
    if status and loader.get('drop_last'):
        advice = 'train_dataloader.drop_last=False'
        assert advice in capfd.readouterr().err and not list(work.glob('*.safetensors'))
        status = run_cleanly(run.train, [*words, '--cfg-options', advice])
    assert status == 0
    header = adapter_file.read_header(work / 'adapter.safetensors')
    per_epoch = load_file(str(work / 'epoch_2.pth'))['meta']['iter'] / 2
    assert header['metrics'] and per_epoch >= 1 and (batch < 16 or per_epoch <= 2), config  # VTAB's form has 2 more


TARGETS = ('timm', 'hf', 'openai', 'original', 'peft')


@pytest.mark.parametrize('path', chosen(('configs/quickstart/lora.py', )))
def test_every_export_is_written_or_refused_in_a_line(path, tmp_path, capsys):
    if 'zeroshot' in path:
        pytest.skip('there is no adapter to export')
    config = shipped.shrink(path, tmp_path / 'run')
    adapter = str(tmp_path / 'adapter.safetensors')
    write_adapter(shipped.stir(Config.fromfile(str(config))), adapter)
    written = []
    for target in (*TARGETS, *(('onnx', ) if path in GRAPHS else ())):
        out = tmp_path / dict(hf='hf', peft='peft', onnx='model.onnx').get(target, f'{target}.pth')
        status = main(['export', str(config), adapter, '-o', str(out), '--to', target])
        said = capsys.readouterr().err.splitlines()
        last = said[-1] if said else ''
        assert status == 0 and out.exists() or status == 1 and last.startswith('error: ') and 'Error: ' not in last, last
        written += [target] if status == 0 else []
    assert 'onnx' in written or path not in GRAPHS
