"""Compute the text features that language-initialised and zero-shot heads start from.

    python tools/text_features.py ~/.cache/mmpetl/ViT-B-32.pt --suite elevater --root data/elevater --out text_features
    python tools/text_features.py ~/.cache/mmpetl/ViT-B-32.pt --classes names.txt --template 'a photo of a {}.' --out
    mine.npz

One .npz per data set, see mmpetl/models/text_features.py. Class names come from the data, or from --prompts, a JSON
file {"<task>": {"classes": [...], "templates": [...]}}. Needs open_clip_torch (requirements/convert.txt) for its
tokenizer.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

if (Path(__file__).resolve().parents[1] / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmpetl.clean_errors import run_cleanly

DEFAULT = 'a photo of a {}.'


def tokenizer(context: int):
    """open_clip's tokenizer: OpenAI's byte pair encoding, whose table rides in the package."""
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError:
        raise ValueError('the tokenizer needs open_clip_torch: pip install -r requirements/convert.txt') from None
    tokenize = SimpleTokenizer(context_length=context)
    return lambda texts: tokenize(texts)


def prompts_of(args) -> dict:
    """{task: (class names, templates)}."""
    templates = args.template or [DEFAULT]
    if args.classes:
        names = [line.strip() for line in Path(args.classes).read_text(encoding='utf-8').splitlines() if line.strip()]
        return {'': (names, templates)}
    given = json.loads(Path(args.prompts).read_text(encoding='utf-8')) if args.prompts else {}
    from mmpetl.datasets.tables import get_suite
    from mmpetl.registry import DATASETS
    suite, found = get_suite(args.suite), {}
    for name in args.tasks or suite.tasks:
        if name not in given:
            data = DATASETS.build(
                dict(type=suite.dataset, task=name, split='test', data_root=args.root or suite.root, lazy_init=True))
            if all(c.isdigit() for c in data.CLASSES):
                raise ValueError(f'{name} names its classes nowhere: give them with --prompts')
            given[name] = dict(classes=list(data.CLASSES))
        found[name] = (given[name]['classes'], given[name].get('templates', templates))
    return found


def main(argv) -> None:
    """Compute and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='CLIP weights with a text tower (OpenAI, open_clip or Hugging Face)')
    parser.add_argument('--out', required=True, help='the .npz (with --classes), or a folder that gets <task>.npz')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--classes', help='file with one class name a line')
    source.add_argument('--suite', help='all data sets of a suite, for example elevater')
    parser.add_argument('--root', help="folder of the suite's data")
    parser.add_argument('--tasks', nargs='+', help='only these data sets')
    parser.add_argument('--prompts', help='JSON file with class names and templates')
    parser.add_argument('--template', action='append', help=f'template, may be repeated; default {DEFAULT!r}')
    parser.add_argument(
        '--act', choices=['quick_gelu', 'gelu'], default='quick_gelu', help="quick_gelu for OpenAI's models (default)")
    parser.add_argument('--name', help='name of the model in the files; default the file name')
    args = parser.parse_args([a for a in argv if a != '--debug'])

    from mmpetl.models.clip_text import build_text_tower, encode_classes
    from mmpetl.models.text_features import save_text_features
    from mmpetl.weights.io import load_file
    path = os.path.expanduser(args.checkpoint)
    state = load_file(path)
    tower = build_text_tower(state.get('state_dict', state), args.act)
    tokenize = tokenizer(len(tower.positional_embedding))
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    for task, (classes, templates) in prompts_of(args).items():
        target = os.path.join(args.out, f'{task}.npz') if task else args.out
        save_text_features(target,
                           encode_classes(tower, tokenize, classes, templates, args.name or Path(path).stem, digest))
        print(f'{target}: {len(classes)} classes, {len(templates)} templates')


if __name__ == '__main__':
    sys.exit(run_cleanly(main, sys.argv[1:]))
