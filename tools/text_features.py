# SPDX-License-Identifier: Apache-2.0
"""Compute the text features that language-initialised and zero-shot heads start from.

    mmpetl fetch clip-vit-base-p32 elevater-prompts
    python tools/text_features.py clip-vit-base-p32 --suite elevater       # all that configs/pevit read
    python tools/text_features.py clip-vit-base-p32 --suite elevater --knowledge wiktionary gpt3 --out features/known
    python tools/text_features.py clip-vit-base-p16 --videos hmdb51        # names from its classes.txt
    python tools/text_features.py my_clip.pt --classes names.txt --template 'a photo of a {}.' --out mine.npz

One .npz per data set, see mmpetl/models/text_features.py. Class names and templates of ELEVATER come from the file that
its toolkit ships ('mmpetl fetch elevater-prompts'), others from the data or from --prompts, a JSON file {"<task>":
{"classes": [...], "templates": [...]}}. Needs open_clip_torch (requirements/convert.txt) for its tokenizer.
"""

import argparse
import os
import sys
from pathlib import Path

if (Path(__file__).resolve().parents[1] / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmpetl.clean_errors import run_cleanly
from mmpetl.weights.reading import MAX_LIST, read_json, read_text, sha256_of

DEFAULT = 'a photo of a {}.'


def tokenizer(context: int):
    """open_clip's tokenizer: OpenAI's byte pair encoding, whose table rides in the package."""
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError:
        raise ValueError('the tokenizer needs open_clip_torch: pip install -r requirements/convert.txt') from None
    tokenize = SimpleTokenizer(context_length=context)
    return lambda texts: tokenize(texts)


def given_prompts(args, suite) -> dict:
    """{task: (class names, templates)} from --prompts; for ELEVATER by default from the toolkit's file."""
    from mmpetl.datasets.fetch import cache_dir
    from mmpetl.models.text_prompts import read_prompts
    path = args.prompts
    if path is None:
        if suite.name != 'elevater':
            return {}
        path = str(cache_dir() / 'elevater/prompts.py')
    if path.endswith('.py'):
        return read_prompts(path)
    given = read_json(path, MAX_LIST)
    if not isinstance(given, dict) or not all(
            isinstance(row, dict) and isinstance(row.get('classes'), list) for row in given.values()):
        raise ValueError(f'{path}: expected a JSON object {{task: {{"classes": [...], "templates": [...]}}}}')
    return {task: (row['classes'], row.get('templates', args.template or [DEFAULT])) for task, row in given.items()}


def prompts_of(args) -> dict:
    """{task: (class names, templates)}, or {task: why there are none}."""
    from mmpetl.models.text_prompts import VIDEO_TEMPLATES, as_words
    templates = args.template or [DEFAULT]
    if args.classes:
        names = [line.strip() for line in read_text(args.classes).splitlines() if line.strip()]
        return {'': (names, templates)}
    if args.videos:
        path = os.path.join(args.root or os.path.join('data', args.videos), 'classes.txt')
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path} is missing: 'python tools/prepare_{args.videos}.py' writes it, or name "
                                    'the folder by --root')
        return {args.videos: ([as_words(name) for name in read_text(path).splitlines() if name.strip()],
                              args.template or list(VIDEO_TEMPLATES))}
    from mmpetl.datasets.tables import get_suite, get_task
    from mmpetl.registry import DATASETS
    suite, found = get_suite(args.suite), {}
    given = given_prompts(args, suite)
    for name in args.tasks or suite.tasks:
        spec = get_task(suite, name)
        if name in given:
            found[name] = given[name][0], args.template or given[name][1]
            if len(given[name][0]) != spec.num_classes:
                found[name] = f'the prompts name {len(given[name][0])} classes, the data set has {spec.num_classes}'
            continue
        try:
            data = DATASETS.build(
                dict(type=suite.dataset, task=name, split='test', data_root=args.root or suite.root, lazy_init=True))
        except (OSError, ValueError) as error:
            found[name] = str(error)
            continue
        unnamed = all(c.isdigit() for c in data.CLASSES)
        found[name] = (f'neither {data.data_root} nor --prompts names its classes' if unnamed else
                       (list(data.CLASSES), templates))
    return found


def base_of(name: str) -> tuple:
    """(weight file, name of the model) of an official base or of a file."""
    from mmpetl.datasets.fetch import cache_dir
    from mmpetl.models.text_features import CLIP_FOLDERS
    from mmpetl.weights.bases import BASES
    path = str(cache_dir() / BASES[name].file) if name in BASES else os.path.expanduser(name)
    official = {BASES[base].file: folder for folder, base in CLIP_FOLDERS.items()}
    return path, official.get(Path(path).name, Path(path).stem)


def arguments(argv) -> argparse.Namespace:
    """Arguments of the command line."""
    from mmpetl.models.text_prompts import VIDEO_SETS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='CLIP weights with a text tower (OpenAI, open_clip or Hugging Face), or an '
                        'official base by its name, for example clip-vit-base-p32')
    parser.add_argument('--out', help='the .npz (with --classes), or a folder that gets <task>.npz; default the folder '
                        'that the configs read')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--classes', help='file with one class name a line')
    source.add_argument('--suite', help='all data sets of a suite, for example elevater')
    source.add_argument('--videos', choices=VIDEO_SETS, help='a data set of videos that is prepared')
    parser.add_argument('--root', help="folder of the suite's data or of the videos'")
    parser.add_argument('--tasks', nargs='+', help='only these data sets')
    parser.add_argument('--prompts', help="JSON file with class names and templates, or the toolkit's prompts.py")
    parser.add_argument('--template', action='append', help=f'template, may be repeated; default {DEFAULT!r}, or '
                        'the 48 for actions with --videos')
    parser.add_argument('--knowledge', nargs='+', default=[], metavar='KIND',
                        help='append what wordnet, wordnet-path, wiktionary or gpt3 say about a class')
    parser.add_argument('--knowledge-root', help="folder of the knowledge files; default the cache's")
    parser.add_argument('--gpt3-items', type=int, default=1, help='texts of GPT-3 per class, 1 to 5 (default 1)')
    parser.add_argument(
        '--act', choices=['quick_gelu', 'gelu'], default='quick_gelu', help="quick_gelu for OpenAI's models (default)")
    parser.add_argument('--name', help='name of the model in the files; default the file name')
    args = parser.parse_args([a for a in argv if a not in ('--debug', '--verbose')])
    if args.classes and (args.knowledge or not args.out):
        parser.error('--classes needs --out, and knows no --knowledge')
    if args.videos and args.knowledge:
        parser.error('there is no --knowledge about --videos')
    if args.knowledge and not args.out:
        parser.error('--knowledge needs --out: the default folder holds the features without knowledge')
    return args


def main(argv) -> None:
    """Compute and write the files; what cannot be made is said, and the rest is made."""
    args = arguments(argv)
    from mmpetl.datasets.fetch import cache_dir
    from mmpetl.models.clip_text import build_text_tower, encode_classes
    from mmpetl.models.text_features import save_text_features
    from mmpetl.models.text_prompts import read_knowledge, suffixes
    from mmpetl.weights.io import load_file
    path, model = base_of(args.checkpoint)
    wanted = prompts_of(args)
    state = load_file(path)
    tower = build_text_tower(state.get('state_dict', state), args.act)
    tokenize = tokenizer(len(tower.positional_embedding))
    digest = sha256_of(path)
    out = args.out or str(cache_dir() / 'text_features' / model)
    made = 0
    for task, found in wanted.items():
        if isinstance(found, str):
            print(f'{task}: left out: {found}')
            continue
        classes, templates = found
        known = {}
        if args.knowledge:
            folder = args.knowledge_root or str(cache_dir() / 'elevater/knowledge')
            known = read_knowledge(folder, task, args.knowledge, args.gpt3_items)
        target = out if not task or args.videos and args.out else os.path.join(out, f'{task}.npz')
        features = encode_classes(tower, tokenize, classes, templates, args.name or model, digest,
                                  {name: suffixes(name, texts) for name, texts in known.items()})
        save_text_features(target, features)
        made += 1
        about = f', knowledge about {len(set(known) & set(classes))} of them' if known else ''
        print(f'{target}: {len(classes)} classes{about}, {len(templates)} templates')
    if not made:
        raise ValueError('no text features were made: see the lines above')


if __name__ == '__main__':
    sys.exit(run_cleanly(main, sys.argv[1:]))
