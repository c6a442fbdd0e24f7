# SPDX-License-Identifier: Apache-2.0
"""The config of a data set of one's own: inherits a shipped base and schedule, adapted to the number of samples."""

import os
import shlex
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from mmengine.config import Config

from ..backbones.family import ARCH_OF_TYPE
from ..datasets.make import Lists
from ..datasets.tables import CLIP_NORM
from ..recipes import folder as config_folder
from ..registry import METHODS as REGISTERED
from ..suggest import nearest
from ..weights.archs import ARCHS

#: Methods as the shipped recipes set them; others are built with their defaults.
METHODS: Dict[str, List[Dict[str, Any]]] = {
    'linear': [],
    'bitfit': [],
    'full': [],
    'LoRA': [dict(type='LoRA', rank=8, alpha=16, ops='qkv')],
    'Adapter': [dict(type='Adapter', kind='pfeiffer', mid_dims=64)],
    'AdaptFormer': [dict(type='AdaptFormer', mid_dims=64, scale=0.1)],
    'PATT': [dict(type='PATT', ops='kv', mid_dims=64, scale=0.8, init='zero_up')],
    'Prefix': [dict(type='Prefix', num_tokens=16, mid_dims=128)],
    'VPT': [dict(type='VPT', num_tokens=10, deep=True, drop_rate=0.1)],
    'E2VPT': [dict(type='E2VPT', num_tokens=10, num_kv_tokens=5, drop_rate=0.1)],
    'APT': [dict(type='APT', num_tokens=50, drop_rate=0.1, reparam='exp')],
    'Compacter': [dict(type='Compacter', mid_dims=64, phm_dim=4)],
    'Convpass': [dict(type='Convpass', mid_dims=8)],
    'FacT': [dict(type='FacT', kind='tk', rank=16)],
    'SynQT': [dict(type='SynQT', num_tokens=4)],
    'LST': [dict(type='LST', reduction=8)],
    'VQT': [dict(type='VQT', num_tokens=10)],
}
#: Patterns of base parameters that train, and the learning rate where it is not that of the schedule.
TUNE = {'bitfit': ['*bias*'], 'full': ['*']}
RATES = {'full': 5e-5}
#: Base for videos -> the shipped data file whose clips it reads; the first whose name begins the base's counts.
CLIPS = {'videomae-dinov2': 'motion6', 'video-swin-base': 'hmdb51_8x2', 'hf_timesformer-base': 'hmdb51_8x2',
         'uniformerv2': 'hmdb51_8x2', '': 'hmdb51_16x4'}
DEFAULT_BASE = {'picture': 'dinov2-small', 'video': 'videomae-small'}
#: Training steps that even the smallest data set gets, and bounds of the epochs.
STEPS, FEWEST, MOST = 400, 10, 100


@dataclass
class Choice:
    """A base and methods for it.

    Attributes:
        base: Name of a file in ``configs/_base_/backbones``.
        methods: Names of the methods, in the order in which they are applied.
        petl: Their configs.
        tune: Patterns of base parameters that train beside those of the base file.
    """
    base: str
    methods: List[str]
    petl: List[Dict[str, Any]] = field(default_factory=list)
    tune: List[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """For the name of the config: ``lora-adaptformer_dinov2-small``."""
        return f'{"-".join(m.lower() for m in self.methods)}_{self.base}'


@lru_cache(maxsize=None)
def bases(kind: str) -> Dict[str, Path]:
    """The shipped bases for pictures or videos, by name."""
    scopes = dict(picture='ImageClassifier', video='Recognizer3D')
    found = {}
    for path in sorted((config_folder() / '_base_' / 'backbones').glob('*.py')):
        if str(Config.fromfile(str(path)).get('model', {}).get('type')).endswith(scopes[kind]):
            found[path.stem] = path
    return found


def choose(kind: str, base: str = '', methods: Sequence[str] = ()) -> Choice:
    """Check the names of a base and of methods.

    Args:
        kind: 'picture' or 'video'.
        base: Name of a base; '' for the usual one.
        methods: Names in any case; none is LoRA.

    Raises:
        ValueError: If a name is unknown; the message offers the nearest.
    """
    base = base or DEFAULT_BASE[kind]
    known = bases(kind)
    if base not in known:
        other = 'picture' if kind == 'video' else 'video'
        if base in bases(other):
            raise ValueError(f'--base {base} is for {other}s, these are {kind}s: choose {", ".join(known)}')
        raise ValueError(f'unknown --base {base!r}' + nearest(base, known))
    REGISTERED.import_from_location()
    names = {name.lower(): name for name in [*REGISTERED.module_dict, *METHODS]}
    chosen = []
    for name in methods or ['LoRA']:
        if name.lower() not in names:
            raise ValueError(f'unknown --method {name!r}' + nearest(name, names.values()))
        chosen.append(names[name.lower()])
    twice = next((name for name in chosen if chosen.count(name) > 1), None)
    if twice:
        raise ValueError(f'--method {" ".join(methods)}: {twice} is given twice: give it once')
    alone = [name for name in chosen if not METHODS.get(name, [name])]
    if alone and len(chosen) > 1:
        raise ValueError(f'--method {" ".join(chosen)}: {alone[0]} stands alone: give it without the others')
    petl = [dict(cfg) for name in chosen for cfg in METHODS.get(name, [dict(type=name)])]
    return Choice(base, chosen, petl, TUNE.get(chosen[0], []))


def schedule(samples: int, largest_batch: int) -> Tuple[int, int, int]:
    """Batch size, steps of an epoch, epochs: a few hundred steps for the smallest data sets.

    Args:
        samples: Training samples.
        largest_batch: Batch size that the model is trained with where there are enough samples.
    """
    batch = min(samples, largest_batch)
    steps = ceil(samples / batch)
    return batch, steps, min(max(ceil(STEPS / steps), FEWEST), MOST)


def _reads_beside_text(choice: Choice) -> bool:
    """Whether the base was trained beside text, and so reads pictures that are normalised as there."""
    settings = Config.fromfile(str(bases('picture')[choice.base])).model.backbone
    arch = ARCHS.get(ARCH_OF_TYPE[settings.type])
    return arch is not None and arch.projects


def _base_paths(choice: Choice, kind: str, out: str) -> List[str]:
    """The files to inherit; relative where the config lies in the same checkout."""
    root = config_folder()
    clips = next(data for name, data in CLIPS.items() if choice.base.startswith(name))
    parts = ['default_runtime_video.py' if kind == 'video' else 'default_runtime.py',
             f'backbones/{choice.base}.py', f'datasets/{clips if kind == "video" else "own_pictures"}.py',
             'schedules/own_data.py']
    paths = [str(root / '_base_' / part) for part in parts]
    if Path(os.path.abspath(out)).is_relative_to(root.parent):
        paths = [os.path.relpath(path, out).replace(os.sep, '/') for path in paths]
    return paths


def _loader(name: str, part: str, batch: int, workers: int, more: Sequence[str] = ()) -> str:
    inner = ', '.join([f"ann_file=lists + '/{part}.txt'", *more, '**data'])
    return (f'{name}_dataloader = dict(\n    batch_size={batch},\n    num_workers={workers},\n'
            f'    persistent_workers={workers > 0},\n    drop_last=False,\n    dataset=dict({inner}))')


def _data(lists: Lists, choice: Choice, batch: int, bands: Optional[Sequence[int]]) -> List[str]:
    """The lines of the config about data."""
    kind, classes = lists.collection.kind, len(lists.collection.classes)
    video = kind == 'video'
    workers = min(4, os.cpu_count() or 1, ceil(len(lists.parts['train']) / batch))
    lines = ["lists = '{{ fileDirname }}'"]
    own = "classes=lists + '/classes.txt'"
    if video:  # mmengine reads the names out of the file
        own = f"num_classes={classes}, metainfo=dict(classes=lists + '/classes.txt')"
    lines.append(f'data = dict(data_root={lists.collection.root!r}, {own})')
    pipelines = {'train': [], 'val': [], 'test': []}  # type: Dict[str, List[str]]
    if lists.window or bands:
        options = [f'window={lists.window!r}'] if lists.window else []
        options += [f'bands={tuple(bands)!r}'] if bands else []
        lines.append(f"load = dict(type='mmpetl.LoadImage', {', '.join(options)})")
        pipelines = {name: [f'pipeline=[load, *_base_.{base}_pipeline[1:]]']
                     for name, base in (('train', 'train'), ('val', 'test'), ('test', 'test'))}
    lines.append(_loader('train', 'train', batch, workers, pipelines['train']))
    if lists.parts['val']:
        lines.append(_loader('val', 'val', batch, workers, pipelines['val'] + (['indices=None'] if video else [])))
        lines.append("val_evaluator = [dict(type='AccMetric')]" if video else '')
    else:
        lines.append('val_dataloader = val_cfg = val_evaluator = None')
    if not lists.parts['test']:
        lines.append(f'# too few {kind}s to hold any out: this tests on the training {kind}s')
    lines.append(_loader('test', 'test' if lists.parts['test'] else 'train', 1 if video else batch, workers,
                         pipelines['test']))
    lines.append("test_evaluator = [dict(type='AccMetric')]" if video else '')
    return [line for line in lines if line]


def config_text(lists: Lists, choice: Choice, name: str, out: str, trainable: str = '', epochs: int = 0,
                bands: Optional[Sequence[int]] = None) -> str:
    """The config.

    Args:
        lists: The data set.
        choice: Base and methods.
        name: Name of the data set.
        out: Folder of the config and the lists.
        trainable: What trains, for the first lines.
        epochs: Number of epochs; 0 chooses by the number of samples.
        bands: Bands of the pictures that are red, green and blue.
    """
    kind, video = lists.collection.kind, lists.collection.kind == 'video'
    batch, steps, chosen = schedule(len(lists.parts['train']), 8 if video else 32)
    lines = [*_docstring(lists, choice, name, out, trainable), '', '_base_ = [']
    lines += [f'    {base!r},' for base in _base_paths(choice, kind, out)]
    lines += [']', *_data(lists, choice, batch, bands)]
    if not video and _reads_beside_text(choice):
        lines.append(f'data_preprocessor = dict(mean={list(CLIP_NORM["mean"])}, std={list(CLIP_NORM["std"])})')
    lines.append(_model(choice, 'cls_head' if video else 'head', len(lists.collection.classes)))
    # The best of clips is not kept without a validation part: there is nothing to tell it by.
    lines += _training(choice, epochs or chosen, min(10, steps), keep_best=not video or bool(lists.parts['val']))
    return '\n'.join(lines) + '\n'


def _docstring(lists: Lists, choice: Choice, name: str, out: str, trainable: str) -> List[str]:
    """What the config is and the commands that run it, as all shipped configs open."""
    stem = f'{name}_{choice.title}'
    counts = ', '.join(f'{len(lists.parts[part])} for {what}'
                       for part, what in (('train', 'training'), ('val', 'validation'), ('test', 'testing')))
    path = shlex.quote(os.path.join(out, stem + '.py'))
    return [
        f'"""{" + ".join(choice.methods)} on {choice.base}, {name}: {len(lists.collection.classes)} classes, '
        f'{lists.collection.kind}s: {counts}.', '', f'    mmpetl train {path}',
        f'    mmpetl test {path} work_dirs/{stem}/adapter.safetensors', '',
        *([f'Trainable: {trainable}.'] if trainable else []), 'Expected accuracy: unknown.', '"""'
    ]


def _model(choice: Choice, head: str, classes: int) -> str:
    petl = ''.join(f'        {cfg!r},\n' for cfg in choice.petl)
    tune = f', tune=[*_base_.model.backbone.get("tune", []), *{choice.tune!r}]' if choice.tune else ''
    return f'model = dict(\n    backbone=dict(petl=[\n{petl}    ]{tune}),\n    {head}=dict(num_classes={classes}))'


def _training(choice: Choice, epochs: int, log_interval: int, keep_best: bool) -> List[str]:
    """The lines about length, rate and checkpoints: a tenth of the epochs warms up, validation comes five times."""
    warm, interval = max(1, epochs // 10), max(1, epochs // 5)
    lines = [
        f'max_epochs = {epochs}', f'train_cfg = dict(max_epochs=max_epochs, val_interval={interval})',
        'param_scheduler = [',
        f"    dict(type='LinearLR', start_factor=0.1, begin=0, end={warm}, convert_to_iter_based=True),",
        f"    dict(type='CosineAnnealingLR', begin={warm}, end=max_epochs, convert_to_iter_based=True),", ']'
    ]
    if choice.methods[0] in RATES:
        lines.append(f'optim_wrapper = dict(optimizer=dict(lr={RATES[choice.methods[0]]}))')
    saving = f'interval={interval}' + ('' if keep_best else ', save_best=None')
    lines.append(f'default_hooks = dict(logger=dict(interval={log_interval}), checkpoint=dict({saving}))')
    return lines
