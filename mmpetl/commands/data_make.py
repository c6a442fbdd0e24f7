# SPDX-License-Identifier: Apache-2.0
"""``mmpetl data make FOLDER``: lists, classes and a ready config of a data set of one's own."""

import argparse
import os
import re
import shlex
from pathlib import Path
from typing import Any

from ..datasets.collect import Collection, collect
from ..datasets.make import Lists, cut, write_lists
from ..datasets.split import PARTS
from ..datasets.survey import Survey, extent, survey_pictures, survey_videos
from ..datasets.video_lists import write_text
from ..names import plain_name
from ..training.own_config import Choice, choose, config_text
from ..weights.bases import command_for
from .progress import bar
from .unreadable import leave_out

#: Words of class names that a mirrored picture makes wrong.
SIDES = re.compile(r'(?<![^\W_])(left|right)(?![^\W_])', re.IGNORECASE)


def look(found: Collection, args: argparse.Namespace) -> Survey:
    """Open every file, with a progress bar."""
    paths = [found.full(item) for item in found.items]
    with bar(f'{found.kind}s') as tick:
        if found.kind == 'video':
            return survey_videos(paths, 'open', args.jobs, tick)
        return survey_pictures(paths, args.bands, None, args.jobs, tick)


def _check_bands(survey: Survey, args: argparse.Namespace) -> None:
    """Say that ``--bands`` does not fit, where it would be said that pictures cannot be read.

    Raises:
        ValueError: If it fits none of the pictures, or not all and none may be left out.
    """
    counts = [look.bands for look in survey.looks.values() if look.bands]
    if not counts or args.skip_unreadable and len(counts) < len(survey.looks):
        return
    of = f'{len(counts)} of {len(survey.looks)} pictures'
    found = str(min(counts)) if min(counts) == max(counts) else f'{min(counts)} to {max(counts)}'
    if args.bands:
        raise ValueError(f'--bands {" ".join(map(str, args.bands))}: {of} have {found} band{"s" * (found != "1")}: '
                         f'give {f"bands from 1 to {min(counts)}" if min(counts) > 1 else "band 1, or leave it out"}')
    raise ValueError(f'{of} have {found} bands: give --bands, such as --bands 3 2 1 for red, green, blue, or one band')


def _print(lists: Lists, survey: Survey) -> None:
    from rich.console import Console
    from rich.table import Table
    found = lists.collection
    print(f'{found.source}: {len(found.items)} {found.kind}s of {len(found.classes)} classes{extent(survey)}')
    table = Table()
    for column in ('class', *PARTS):
        table.add_column(column, justify='left' if column == 'class' else 'right')
    counts = {part: lists.counts(part) for part in PARTS}
    for label, name in enumerate(found.classes[:50]):
        table.add_row(name, *(str(counts[part][label]) for part in PARTS))
    if len(found.classes) > 50:
        table.add_row(f'and {len(found.classes) - 50} more', *([''] * len(PARTS)))
    table.add_row('all', *(str(len(lists.parts[part])) for part in PARTS))
    Console().print(table)
    for note in lists.notes:
        print(f'note: {note}')


def _trainable(path: str) -> str:
    """Build the model of the config, which checks that base and methods fit, and say what trains."""
    from ..costs.memory import on_meta
    from ..training.build import build_model, read_config
    from ..tuning import summary
    with on_meta():
        found = summary(build_model(read_config(path), weights=False))
    return f'{found.without_head:,} parameters and {found.head:,} in the head'


def write_config(lists: Lists, choice: Choice, name: str, args: argparse.Namespace) -> str:
    """Write the config; it is there only if its model can be built.

    Raises:
        ValueError: If base and methods do not fit.
        FileExistsError: If another config of that name is there.
    """
    path = os.path.join(args.out, f'{name}_{choice.title}.py')
    settings: Any = dict(epochs=args.epochs, bands=args.bands)
    if os.path.exists(path) and not args.overwrite:
        raise FileExistsError(f'{path} is there already: choose another --out or --name, or add --overwrite')
    trial = os.path.join(args.out, f'.{name}_{choice.title}.py')
    write_text(trial, config_text(lists, choice, name, args.out, **settings))
    try:
        trainable = _trainable(trial)
    finally:
        os.remove(trial)
    write_text(path, config_text(lists, choice, name, args.out, trainable, **settings))
    return path


def _mirrored(config: str, lists: Lists) -> str:
    """A note where training mirrors what class names call left or right; '' where nothing speaks for that."""
    from ..training.config import load_config
    sided = [name for name in lists.collection.classes if SIDES.search(name)]
    steps = load_config(config).train_dataloader.dataset.get('pipeline') or []
    flips = {'Flip': 'flip_ratio', 'RandomFlip': 'prob'}
    found = [f'train_dataloader.dataset.pipeline.{i}.{flips[kind]}=0' for i, step in enumerate(steps)
             if (kind := str(step.get('type')).split('.')[-1]) in flips]
    if not sided or not found:
        return ''
    return (f'training mirrors half of the {lists.collection.kind}s, and there is a class {sided[0]!r}: where sides '
            f'matter, train with --set {" ".join(found)}')


def _missing_base(config: str) -> str:
    """The command that fetches the base of a config, if it is a file of the project's that is not there."""
    from ..training.config import load_config
    base = (load_config(config).model.backbone.get('init_cfg') or {}).get('checkpoint') or ''
    return '' if os.path.exists(os.path.expanduser(base)) else command_for(base)


def run(args: argparse.Namespace) -> int:
    """``mmpetl data make``."""
    source = Path(args.source).expanduser().resolve()
    name = args.name or re.sub(r'\W+', '-', source.stem if source.is_file() else source.name).strip('-').lower()
    plain_name(name, '--name')
    if args.bands and len(args.bands) not in (1, 3):
        raise ValueError(f'--bands {" ".join(map(str, args.bands))}: give one band, or three')
    args.out = args.out or os.path.join('own_data', name)
    columns = {key: getattr(args, f'{key}_column') for key in ('path', 'label', 'group', 'split')}
    found = collect(str(source), args.kind, args.classes, args.root, columns)
    choice = choose(found.kind, args.base, args.method)
    survey = look(found, args)
    _check_bands(survey, args)
    note = leave_out(survey.unreadable(), len(found.items), found.kind, args.skip_unreadable)
    found.items = [item for item in found.items if not survey.looks[found.full(item)].wrong]
    lists = cut(found, survey, args.val, args.test, args.seed)
    lists.notes += [note] if note else []
    write_lists(lists, args.out, args.overwrite)
    path = write_config(lists, choice, name, args)
    lists.notes += list(filter(None, [_mirrored(path, lists)]))
    _print(lists, survey)
    missing, given = _missing_base(path), shlex.quote(path)
    print(f'wrote {path} and its lists; look at it by: mmpetl data check {given}\n' +
          (f'fetch:  {missing}\n' if missing else '') +
          f'train:  mmpetl train {given}\n'
          f'test:   mmpetl test {given} work_dirs/{Path(path).stem}/adapter.safetensors')
    return 0
