# SPDX-License-Identifier: Apache-2.0
"""Every command that a recipe prints, on weights and data in the official layouts, shrunk in size.

The default suite runs one recipe of every kind; the slow one runs all.
"""

import copy
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmpetl.commands.fetch import GROUPS
from mmpetl.commands.main import main
from mmpetl.datasets.downloads import DATA
from mmpetl.datasets.prepare import RECIPES
from mmpetl.registry import METHODS
from mmpetl.sites import BlockSpec
from mmpetl.sweeps import plan as sweep_plan
from mmpetl.sweeps.space import space_of
from mmpetl.training import config as training_config
from mmpetl.training import run
from mmpetl.training.tasks import find_dicts
from mmpetl.weights.bases import BASES

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests'))
import official  # noqa: E402
import small_backbones  # noqa: E402

FOLDERS = ('apt', 'backbones', 'e2vpt', 'peers', 'pevit', 'synqt', 'vpetl')
CONFIGS = sorted(p for folder in FOLDERS for p in (ROOT / 'configs' / folder).glob('*.py'))
STARTS = r'(?:python tools/|bash tools/|mmpetl )'


def printed(path):
    """The commands of a recipe's header, with continued lines joined."""
    doc = path.read_text().split('"""')[1].replace('\\\n', ' ')
    return [shlex.split(line) for line in doc.splitlines() if re.match(rf'    {STARTS}', line)]


COMMANDS = {path: printed(path) for path in CONFIGS}
#: One of every kind: pruning, text heads, zero-shot, every family of backbones, every folder.
LEAN = ('e2vpt-prune_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab', 'e2vpt_swin-base_in22k-pre_1xb80-coslr-100e_vtab',
        'zeroshot_clip-vit-base-p32_openai-pre_elevater', 'kadaptation_clip-vit-base-p16_openai-pre_1xb64-50e_elevater',
        'apt-400_videomae-small_k400-pre_8xb8-16x4-coslr-100e_hmdb51', 'zeroshot_clip-vit-base-p16_openai-pre_16x4_hmdb51',
        'patt-kv-adaptformer_video-swin-base_k400-in22k-pre_1xb16-8x2-coslr-70e_hmdb51')


#: Pixels of what tests/small_backbones.py makes small, and its types.
SMALL = 32
OWN = {'mmpetl.TIMM', 'mmpetl.HF', *(f'mmpetl.{kind}' for kind in small_backbones.MM)}


def shrink_backbone(backbone):
    """A base of the official layout's small size."""
    if width := small_backbones.shrink(backbone, SMALL):
        if small_backbones.by_name(backbone):  # what stands in for the hub
            small_backbones.write(backbone, Path(os.environ['MMPETL_CACHE']) / f'hub/{backbone.model_name}')
        return width
    if 'Swin' in backbone.type:
        backbone.arch = dict(embed_dims=official.SWIN_DIM, depths=list(official.SWIN_DEPTHS),
                             num_heads=list(official.SWIN_HEADS))
        if '3D' not in backbone.type:
            backbone.update(img_size=32, pad_small_map=True)
        return official.SWIN_DIM * 8
    backbone.img_size = 64
    if 'VideoMAE' in backbone.type:
        backbone.update(embed_dims=official.DIM, depth=official.DEPTH, num_heads=official.HEADS, img_size=32)
    else:
        backbone.arch = dict(embed_dims=official.DIM, num_layers=official.DEPTH, num_heads=official.HEADS,
                             feedforward_channels=4 * official.DIM)
    for method in backbone.get('petl') or ():
        if isinstance(method.get('drop_path_rate'), list):
            method.drop_path_rate = method.drop_path_rate[:official.DEPTH]
        if method.type == 'KAdaptation':
            method.phm_dim = 4
        if 'num_channels' in method:
            method.num_channels = 4
        if 'budget' in method:
            method.budget = 4000
    return official.DIM


def shrink(cfg):
    """A recipe at toy size: small base and pictures, a few samples, one epoch, no workers."""
    backbone = cfg.model.backbone
    width = shrink_backbone(backbone)
    size = SMALL if backbone.type in OWN or 'Swin' in backbone.type or 'VideoMAE' in backbone.type else 64
    head = cfg.model.get('head') or cfg.model.cls_head
    if cfg.model.get('neck', {}).get('type') == 'mmpetl.CLIPProjection':
        cfg.model.neck.update(in_channels=width, out_channels=16)
        width = 16
    if 'in_channels' in head:
        types = {m.type: m for m in backbone.get('petl') or ()}
        # the feature of two paths, of a side network, or of the base
        head.in_channels = (2 * width if 'DualPath' in types else types['Side4Video'].width if 'Side4Video' in types
                            else width)
    if head.get('projection'):
        head.projection.out_channels = 16
    for kind in ('Resize', 'CenterCrop', 'RandomCrop', 'ResizeEdge', 'mmpetl.ShortSideResize', 'mmpetl.ViewCrops',
                 'MultiScaleCrop'):
        for t in find_dicts([cfg.get(k) for k in ('train_dataloader', 'val_dataloader', 'test_dataloader')], kind):
            for key in ('scale', 'crop_size', 'size', 'input_size'):
                if key in t:
                    t[key] = (size, size) if isinstance(t[key], (list, tuple)) else size
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            cfg[name].update(batch_size=2, num_workers=0, persistent_workers=False)
            for dataset in find_dicts(cfg[name], cfg[name].dataset.type):
                (dataset.get('dataset') or dataset)['indices'] = 4
    if cfg.get('train_cfg'):
        pruning = 'E2VPTLoop' in cfg.train_cfg.type if 'type' in cfg.train_cfg else False
        cfg.train_cfg.update(max_epochs=1, val_interval=1, **(dict(search_epochs=1, percents=[50]) if pruning else {}))
    schedules = cfg.get('param_scheduler') or []
    for schedule in schedules if isinstance(schedules, list) else [schedules]:
        if schedule.get('start_factor', 1) < 0.1:  # the only epoch would be the one at a rate of nearly 0
            schedule.start_factor = 0.1
    if 'per_task' in cfg:  # a batch of two whatever the task's own is
        cfg.per_task.columns = [c for c in cfg.per_task.columns if c != 'train_dataloader.batch_size']
        cfg.per_task.rows = {k: v[:len(cfg.per_task.columns)] for k, v in cfg.per_task.rows.items()}
    cfg.default_hooks.logger.interval = 1
    return cfg


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A working folder with ``data/`` and a cache folder, filled as the fetching and preparing commands would."""
    root = tmp_path_factory.mktemp('official')
    official.write_weights(root / 'cache')
    official.write_prompts(root / 'cache')
    official.write_image_data(root / 'data')
    official.write_video_data(root / 'data')
    return root


@pytest.fixture
def here(place, monkeypatch):
    """The working folder, small recipes, and tools run in this process."""
    monkeypatch.chdir(place)
    if not Path('configs').exists():  # sweeps look for their config before they read it
        Path('configs').symlink_to(ROOT / 'configs')
    monkeypatch.setenv('MMPETL_CACHE', str(place / 'cache'))
    read = training_config.load_config

    def small(path):
        return shrink(read(str(ROOT / path)))

    monkeypatch.setattr(training_config, 'load_config', small)
    monkeypatch.setattr(sweep_plan, 'load_config', small)
    torch.set_num_threads(1)
    return place


def text_features(argv):
    """``tools/text_features.py``, with one data set of a suite."""
    pytest.importorskip('open_clip')
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        import text_features as tool
    finally:
        sys.path.pop(0)
    tool.main(argv + (['--tasks', 'dtd'] if '--suite' in argv else []))


def check_space(config, texts):
    """Every value of a printed search makes the methods of the config; the search itself needs Ray."""
    specs = [BlockSpec(i, 0, 768, 12, 3072, 1, (14, 14)) for i in range(12)]
    tried = 0
    for key, values in space_of(config, texts).items():
        for value in values.tried():
            trial = Config(copy.deepcopy(config._cfg_dict))
            trial.merge_from_dict({key: value})
            for method in trial.model.backbone.petl:
                METHODS.build(dict(method, specs=specs))
            tried += 1
    return tried


def known_names():
    return {*BASES, *DATA, *GROUPS, *RECIPES}


def execute(words):
    """Run one printed command in this process; returns which kind it was."""
    tool, argv = ' '.join(words[:2]), words[2:]
    if tool == 'mmpetl fetch':
        assert set(argv) <= known_names()
    elif tool == 'mmpetl sweep':
        assert main(['sweep', *argv, '--dry-run']) == 0
    elif tool == 'mmpetl search':
        assert check_space(Config.fromfile(str(ROOT / argv[0])), argv[argv.index('--space') + 1:])
    elif tool == 'python tools/text_features.py':
        text_features(argv)
    elif tool == 'python tools/train.py':
        run.train(argv)
    elif tool == 'python tools/test.py':
        assert run.test(argv)
    elif tool == 'bash tools/dist_train.sh':
        assert argv[1].isdigit() and len(argv) == 2
        run.train(argv[:1])
    else:
        assert re.fullmatch(r'tools/prepare_\w+\.py', words[1]) and (ROOT / words[1]).is_file() and words[0] == 'python'
        assert Path(argv[0]).is_dir()
    return tool


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_commands_are_whole_and_name_the_recipe(path):
    """At least one command trains or tests this very file, and every fetched name exists."""
    commands = COMMANDS[path]
    own = str(path.relative_to(ROOT))
    starts = sum(own in words for words in commands)
    assert starts >= 1 and commands[0][:2] == ['mmpetl', 'fetch']
    for words in commands:
        assert own in words or words[1] in ('fetch', 'tools/text_features.py') or 'prepare_' in words[1], words
        if words[1] == 'fetch':
            assert set(words[2:]) <= known_names()
        elif words[0] != 'mmpetl':
            assert (ROOT / words[1]).is_file()
    bases = {Path(value).name for value in checkpoints(Config.fromfile(str(path)).model)}
    assert {BASES[name].file for words in commands if words[1] == 'fetch' for name in words if name in BASES} == bases
    assert bases <= set(official.WRITERS), 'the commands could not be tried: tests/official.py does not write the file'


def checkpoints(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == 'checkpoint' and isinstance(value, str):
                yield value
            else:
                yield from checkpoints(value)


def run_all(path):
    kinds = [execute(words) for words in COMMANDS[path]]
    assert any(kind.split('/')[-1].split('_')[-1] in ('train.py', 'train.sh', 'test.py') or kind == 'mmpetl sweep'
               for kind in kinds)


def test_printed_searches():
    """Those of recipes and of cards."""
    found = [(Config.fromfile(str(path)), words) for path, lines in COMMANDS.items() for words in lines if words[1] == 'search']
    card = (ROOT / 'docs/methods/glora.md').read_text().split('```bash\n')[1].split('```')[0].replace('\\\n', ' ')
    glora = Config.fromfile(str(next(p for p in CONFIGS if p.stem.startswith('glora'))))
    tried = [check_space(config, words[words.index('--space') + 1:]) for config, words in [*found, (glora, shlex.split(card))]]
    assert tried == [24, 11]
    with pytest.raises(ValueError, match='no form of a'):
        check_space(glora, ["model.backbone.petl.0.a=choice(['matrix'])"])


@pytest.mark.parametrize('path', [p for p in CONFIGS if p.stem in LEAN], ids=lambda p: p.stem)
def test_printed_commands_run(path, here):
    run_all(path)


def test_weights_of_kinetics_600_serve_too(here):
    """V-PETL's README names them; the option is that of the backbone's file."""
    path = 'configs/vpetl/patt-kv-adaptformer_video-swin-base_k400-in22k-pre_1xb16-8x2-coslr-70e_hmdb51.py'
    file = BASES['video-swin-base-k600'].file
    text = (ROOT / 'configs/_base_/backbones/video-swin-base.py').read_text()
    assert f'model.backbone.init_cfg.checkpoint=$HOME/.cache/mmpetl/{file}' in text
    run.train([path, '--work-dir', 'k600', '--cfg-options', f'model.backbone.init_cfg.checkpoint={here / "cache" / file}'])


@pytest.mark.slow
@pytest.mark.parametrize('path', [p for p in CONFIGS if p.stem not in LEAN], ids=lambda p: p.stem)
def test_printed_commands_of_every_recipe_run(path, here):
    run_all(path)


def test_missing_data_and_features_name_the_command(tmp_path, monkeypatch):
    """What a recipe needs and is not there: one line with the command that gets it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path / 'cache'))
    zero = 'configs/pevit/zeroshot_clip-vit-base-p32_openai-pre_elevater.py'
    with pytest.raises(FileNotFoundError, match='python tools/text_features.py clip-vit-base-p32 --suite elevater'):
        run.test([str(ROOT / zero), '--cfg-options', 'task.name=dtd'])
