# SPDX-License-Identifier: Apache-2.0
"""From the official archives of HMDB51, UCF101 and Something-Something V2 to the lists that the configs read."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from ..names import folder, path_below
from ..weights.reading import MAX_LIST, read_json, read_text
from .how_to_get import and_get
from .k400 import k400_lists
from .tables.video import VIDEO_SETS, VideoSet
from .video_lists import write_text, write_video_list

#: (path relative to the folder of videos, label)
Row = Tuple[str, int]
#: split -> part ('train', 'test') -> rows
Lists = Dict[str, Dict[str, List[Row]]]
DELIMITERS = {'blank': ' ', 'comma': ','}
VIDEO_SUFFIXES = ('.avi', '.mp4', '.webm', '.mkv', '.mov')


def find_folder(root: Path, names: Sequence[str], what: str, holds: Sequence[str]) -> Path:
    """The first of ``names`` below ``root`` that holds a file of one of the kinds ``holds`` at most two levels down.

    Raises:
        FileNotFoundError: If there is none, saying what was looked for.
    """
    places = [root / name for name in names]
    for place in places:
        if place.is_dir() and any(next(place.glob(depth + pattern), None) for pattern in holds for depth in ('', '*/')):
            return place
    for place in places:
        if place.is_dir() and next(place.glob('*.rar'), None):
            raise FileNotFoundError(
                f'{place} holds .rar archives and no {what}: unpack each of them there first (unrar x FILE)')
    raise FileNotFoundError(
        f'no {what} below {root}: looked for {", ".join(holds)} in {", ".join(str(p) for p in places)}')


def hmdb51_lists(videos: Path, lists: Path) -> Tuple[Lists, List[str]]:
    """HMDB51: ``<class>_test_split<n>.txt`` with lines ``name.avi flag``; flag 1 trains, 2 tests, 0 is left out. Labels
    are alphabetical.

    Args:
        videos: Folder with one folder per class.
        lists: Folder of the official lists.

    Raises:
        ValueError: If a line cannot be read.
    """
    classes = sorted(path.name[:-len('_test_split1.txt')] for path in lists.glob('*_test_split1.txt'))
    found: Lists = {}
    for split in (1, 2, 3):
        parts: Dict[str, List[Row]] = {'train': [], 'test': []}
        for label, name in enumerate(classes):
            path = lists / f'{name}_test_split{split}.txt'
            for number, line in enumerate(read_text(path, MAX_LIST).splitlines(), 1):
                if not line.strip():
                    continue
                video, _, flag = line.strip().rpartition(' ')
                if flag not in ('0', '1', '2') or not video:
                    raise ValueError(f"{path}, line {number}: expected 'video.avi 0|1|2', got {line!r}")
                if flag != '0':
                    parts['train' if flag == '1' else 'test'].append((f'{name}/{video.strip()}', label))
        found[f'split{split}'] = parts
    return found, classes


def ucf101_lists(videos: Path, lists: Path) -> Tuple[Lists, List[str]]:
    """UCF101: ``classInd.txt``, ``trainlist0<n>.txt`` (lines ``Class/video.avi id``), ``testlist0<n>.txt`` (without
    ids).

    Raises:
        ValueError: If a line names an unknown class or another label than its class has.
    """
    order = [line.split() for line in read_text(lists / 'classInd.txt').splitlines() if line.strip()]
    wrong = [words for words in order if len(words) != 2 or not words[0].isdecimal() or len(words[0]) > 9]
    if wrong or not order:
        raise ValueError(f"{lists / 'classInd.txt'}: expected lines 'number class', got {wrong[:1]!r:.200}")
    label_of = {name: int(number) - 1 for number, name in order}
    found: Lists = {}
    for split in (1, 2, 3):
        parts: Dict[str, List[Row]] = {}
        for part in ('train', 'test'):
            path = lists / f'{part}list0{split}.txt'
            rows = []
            for number, line in enumerate(read_text(path, MAX_LIST).splitlines(), 1):
                if not line.strip():
                    continue
                video, *given = line.split()
                label = label_of.get(video.split('/')[0])
                if label is None or (given and given[0] != str(label + 1)):
                    raise ValueError(f'{path}, line {number}: {line!r} does not fit the classes of classInd.txt')
                rows.append((video, label))
            parts[part] = rows
        found[f'split{split}'] = parts
    return found, [name for name, _ in sorted(label_of.items(), key=lambda item: item[1])]


def ssv2_lists(videos: Path, lists: Path) -> Tuple[Lists, List[str]]:
    """Something-Something V2: JSON lists of ``{"id", "template"}`` and the JSON object ``{template without brackets:
    id}``.

    The official names (``something-something-v2-train.json``) and the shorter ones (``train.json``) are found.

    Raises:
        FileNotFoundError: If a list is missing.
        ValueError: If a template is unknown.
    """

    def read(*names: str) -> Any:
        for name in names:
            for path in (lists / f'something-something-v2-{name}.json', lists / f'{name}.json'):
                if path.is_file():
                    return read_json(path, MAX_LIST)
        raise FileNotFoundError(f'{lists}: neither something-something-v2-{names[0]}.json nor {names[0]}.json is there')

    labels = read('labels')
    if not isinstance(labels, dict) or not all(str(number).isdecimal() and len(str(number)) < 9
                                               for number in labels.values()):
        raise ValueError(f'{lists}: the labels are no JSON object {{template: number}}')
    label_of = {name: int(number) for name, number in labels.items()}
    suffix = next((path.suffix for path in sorted(videos.glob('*')) if path.suffix in VIDEO_SUFFIXES), '.webm')
    parts: Dict[str, List[Row]] = {}
    for part, names in (('train', ('train', )), ('test', ('validation', 'val'))):
        rows, entries = [], read(*names)
        if not isinstance(entries, list) or not all(
                isinstance(entry, dict) and isinstance(entry.get('template'), str) and 'id' in entry
                for entry in entries):
            raise ValueError(f'{lists}: the list {names[0]!r} is no JSON list of objects with id and template')
        for entry in entries:
            template = re.sub(r'[\[\]]', '', entry['template'])
            if template not in label_of:
                raise ValueError(f'{lists}: video {entry["id"]} has the unknown template {template!r}')
            rows.append((f'{entry["id"]}{suffix}', label_of[template]))
        parts[part] = rows
    return {'': parts}, [name for name, _ in sorted(label_of.items(), key=lambda item: item[1])]


READERS = {'k400': k400_lists, 'hmdb51': hmdb51_lists, 'ucf101': ucf101_lists, 'ssv2': ssv2_lists}


def check_counts(info: VideoSet, lists: Lists, classes: Sequence[str]) -> List[str]:
    """What differs from the published sizes, one line each."""
    wrong = [] if len(classes) == info.num_classes else [f'{len(classes)} classes, published are {info.num_classes}']
    for split, published in info.splits.items():
        for part, count in zip(('train', 'test'), published):
            rows = lists.get(split, {}).get(part, [])
            where = f'{split} {part}'.strip()
            if count and len(rows) != count:
                wrong.append(f'{where}: {len(rows)} videos, published are {count}')
            if len({label for _, label in rows}) != info.num_classes:
                wrong.append(f'{where}: {len({label for _, label in rows})} of {info.num_classes} classes occur')
        names = [{name for name, _ in rows} for rows in lists.get(split, {}).values()]
        both = set.intersection(*names) if names else set()
        if both:
            wrong.append(f'{split}: {len(both)} videos are in both lists, for example {sorted(both)[0]}')
    return wrong


def encode(source: Path, target: Path, short_side: int, ffmpeg: str) -> str:
    """Re-encode one video as H.264 in mp4, without sound, shrunk to a short side; nothing half-written stays.

    Args:
        source: The video.
        target: The new file.
        short_side: Length of the short side, in pixels; smaller videos keep their size. Sides are made even.
        ffmpeg: The program.

    Returns:
        '' or why it failed.
    """
    # x264 takes even sides only; -2 is what keeps the shape, made even
    side = f'2*trunc(min({short_side}\\,{{}})/2)'
    scale = f"scale=w='if(gt(iw\\,ih)\\,-2\\,{side.format('iw')})':h='if(gt(iw\\,ih)\\,{side.format('ih')}\\,-2)'"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.{target.name}.part.mp4')
    command = [
        ffmpeg, '-nostdin', '-v', 'error', '-y', '-i',
        str(source), '-vf', scale, '-c:v', 'libx264', '-crf', '23', '-preset', 'fast', '-pix_fmt', 'yuv420p', '-an',
        '-movflags', '+faststart',
        str(part)
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not part.is_file() or not part.stat().st_size:
            return (done.stderr.strip().splitlines() or ['ffmpeg wrote nothing'])[-1]
        os.replace(part, target)
        return ''
    finally:
        part.unlink(missing_ok=True)


def encode_all(names: Iterable[str], videos: Path, target: Path, short_side: int, workers: int) -> Dict[str, str]:
    """Re-encode videos that ``target`` does not have yet.

    Returns:
        Why each one that failed did.

    Raises:
        FileNotFoundError: If ffmpeg is not installed.
    """
    ffmpeg = shutil.which('ffmpeg')
    if ffmpeg is None:
        raise FileNotFoundError(
            'ffmpeg is not installed (for example: apt-get install ffmpeg); without --short-side nothing is re-encoded')

    def one(name: str) -> Tuple[str, str]:
        new = (target / name).with_suffix('.mp4')
        return name, '' if new.is_file() else encode(videos / name, new, short_side, ffmpeg)

    with ThreadPoolExecutor(workers) as threads:
        return {name: why for name, why in threads.map(one, names) if why}


def starting_from(out: Path, videos: Path, lists: Lists) -> Lists:
    """The lists with paths that start from ``out``; absolute ones where the videos lie elsewhere."""
    inside = videos.resolve().is_relative_to(out.resolve())
    start = videos.resolve().relative_to(out.resolve()) if inside else videos.resolve()
    return {split: {part: [(str(start / name), label) for name, label in rows] for part, rows in parts.items()}
            for split, parts in lists.items()}


def write_lists(out: Path, lists: Lists, classes: Sequence[str], delimiter: str) -> List[Path]:
    """Write ``train.csv``, ``test.csv`` and ``val.csv`` of every split, and ``classes.txt``.

    ``val.csv`` equals ``test.csv``: VideoMAE and APT validate on the first and test on the second, V-PETL the other way
    round, and in these data sets both are the test part.
    """
    written = []
    for split, parts in lists.items():
        for name, part in (('train', 'train'), ('test', 'test'), ('val', 'test')):
            written.append(out / split / f'{name}.csv')
            write_video_list(str(written[-1]), parts[part], delimiter)
    write_text(str(out / 'classes.txt'), ''.join(f'{name}\n' for name in classes))
    return written


def _folder(text: str) -> Path:
    return Path(folder(text))


def parser_of(name: str, doc: Optional[str]) -> argparse.ArgumentParser:
    """Arguments of ``tools/prepare_<name>.py``."""
    parser = argparse.ArgumentParser(
        prog=f'prepare_{name}.py', description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', nargs='?', type=_folder, default=Path('data') / name,
                        help=f'folder of the unpacked archives; default data/{name}')
    parser.add_argument('--videos', type=_folder, help='folder of the videos, where it is not found below the root')
    parser.add_argument('--lists', type=_folder,
                        help='folder of the official lists, where it is not found below the root')
    parser.add_argument('--out', type=_folder, help='where the lists go; default the root')
    parser.add_argument('--delimiter', choices=list(DELIMITERS), default='blank',
                        help='between path and label: blank (VideoMAE, APT; default) or comma (V-PETL)')
    parser.add_argument(
        '--short-side', type=int, help='re-encode to this short side, for example 256 or 320 (needs ffmpeg)')
    parser.add_argument(
        '--encoded', type=_folder, help='folder of the re-encoded videos; default <root>/videos_<short side>')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='ffmpeg processes at a time')
    parser.add_argument(
        '--allow-partial', action='store_true', help='write lists even if counts differ or videos are missing')
    return parser


def _missing(videos: Path, names: Sequence[str]) -> List[str]:
    """Names that are not below ``videos``, found with one directory listing per folder."""
    folders = {os.path.dirname(name) for name in names}
    there = {folder: set(os.listdir(videos / folder)) if (videos / folder).is_dir() else set() for folder in folders}
    return [name for name in names if os.path.basename(name) not in there[os.path.dirname(name)]]


def _problems(info: VideoSet, lists: Lists, classes: Sequence[str], videos: Path, names: Sequence[str]) -> List[str]:
    wrong = check_counts(info, lists, classes)
    missing = _missing(videos, names)
    if missing:
        wrong.append(f'{len(missing)} of {len(names)} listed videos are not in {videos}, for example {missing[0]}'
                     + and_get(str(videos), info.name))
    return wrong


def prepare(name: str, args: argparse.Namespace) -> int:
    """Do what the arguments ask; 0 if everything is as published.

    Raises:
        FileNotFoundError: If something is not where it should be.
        ValueError: If an official list cannot be read.
    """
    info = VIDEO_SETS[name]
    root = args.root.expanduser()
    videos = args.videos or find_folder(root, info.videos, 'videos', [f'*{s}' for s in VIDEO_SUFFIXES])
    annotations = args.lists or find_folder(root, info.lists, 'official lists',
                                            ['*.csv'] if name == 'k400' else ['*.txt', '*.json'])
    lists, classes = READERS[name](videos, annotations)
    names = sorted({path_below(row[0], f'{annotations}: video')
                    for parts in lists.values() for rows in parts.values() for row in rows})
    wrong = _problems(info, lists, classes, videos, names)
    for line in wrong:
        print(f'problem: {line}')
    if wrong and not args.allow_partial:
        print('nothing was written; --allow-partial writes the lists all the same')
        return 1
    if args.short_side:
        target = args.encoded or root / f'videos_{args.short_side}'
        failed = encode_all([n for n in names if (videos / n).is_file()], videos, target, args.short_side, args.workers)
        for video, why in failed.items():
            print(f'problem: {videos / video} cannot be re-encoded: {why}')
        print(f'{len(names) - len(failed)} videos in {target}')
        lists = {
            split: {
                part: [(str(Path(n).with_suffix('.mp4')), label) for n, label in rows]
                for part, rows in parts.items()
            }
            for split, parts in lists.items()
        }
        videos, wrong = target, wrong + list(failed)
    out = args.out or root
    for path in write_lists(out, starting_from(out, videos, lists), classes, DELIMITERS[args.delimiter]):
        print(f'wrote {path}')
    print(f'{info.title}: {len(classes)} classes, {len(names)} videos in {videos}')
    return 1 if wrong else 0


def main(name: str, doc: Optional[str], argv: Optional[Sequence[str]] = None) -> int:
    """Entry of ``tools/prepare_<name>.py``; 0 if everything is as published, 1 otherwise."""
    args = parser_of(name, doc).parse_args(argv)
    try:
        return prepare(name, args)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError) and not error.errno  # in our own words, without how to get it
        print(f'error: {error}{and_get("", name, str(args.root)) if missing else ""}', file=sys.stderr)
        return 1
