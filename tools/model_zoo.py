# SPDX-License-Identifier: Apache-2.0
"""docs/model_zoo.md, configs/*/metafile.yml and model-index.yml, generated from the recipes.

    python tools/model_zoo.py            say what differs from the files
    python tools/model_zoo.py --write    write them; costs of recipes that have none yet are computed
    python tools/model_zoo.py --write --costs    compute all costs anew

Addresses, digests and licences of the bases come from mmpetl/weights/bases.py, those of the data from
mmpetl/datasets/downloads.py, published numbers from the headers of the recipes, costs from mmpetl/costs/plan.py.
"""

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Tuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))

from mmengine.config import Config

from mmpetl.datasets.downloads import DATA
from mmpetl.datasets.tables import SUITES
from mmpetl.datasets.tables.video import VIDEO_SETS
from mmpetl.weights.bases import FILES, HUB, Base

PAGE, INDEX = 'docs/model_zoo.md', 'model-index.yml'
BENCH = 'README of the V-PETL benchmark'
#: Folder -> (collection, paper, address, card).
FOLDERS: Dict[str, Tuple[str, str, str, str]] = {
    'e2vpt': ('E2VPT', 'E2VPT: An Effective and Efficient Approach for Visual Prompt Tuning',
              'https://arxiv.org/abs/2307.13770', 'e2vpt.md'),
    'peers': ('Peers on VTAB-1k', 'V-PETL Bench: A Unified Visual Parameter-Efficient Transfer Learning Benchmark',
              'https://github.com/synbol/Parameter-Efficient-Transfer-Learning-Benchmark', 'lora.md'),
    'pevit': ('PEViT', 'Parameter-efficient Model Adaptation for Vision Transformers',
              'https://arxiv.org/abs/2203.16329', 'kadaptation.md'),
    'synqt': ('SynQT', 'Parameter-Efficient and Memory-Efficient Tuning for Vision Transformer: A Disentangled '
              'Approach', 'https://arxiv.org/abs/2407.06964', 'synqt.md'),
    'vpetl': ('V-PETL', 'Towards a Unified View on Visual Parameter-Efficient Transfer Learning',
              'https://arxiv.org/abs/2210.00788', 'patt.md'),
    'backbones': ('Further backbones', 'LoRA: Low-Rank Adaptation of Large Language Models',
                  'https://arxiv.org/abs/2106.09685', 'lora.md'),
    'apt': ('APT', 'Attention Prompt Tuning: Parameter-efficient Adaptation of Pre-trained Models for Spatiotemporal '
            'Modeling', 'https://arxiv.org/abs/2403.06978', 'apt.md'),
}
#: (pattern of the recipe's path, where its published number stands); the first that fits counts.
SOURCES: Tuple[Tuple[str, str], ...] = (
    (r'e2vpt/e2vpt.*in21k', 'E2VPT, Table 1, pruned; 89.22 and 73.94 as a public listing shows them, the rest not '
     'compared with the paper again'),
    (r'e2vpt/e2vpt', 'E2VPT, table of this backbone, pruned; not compared with the paper again'),
    (r'e2vpt/.*in21k', f'VPT, Table 1; as in the {BENCH}'),
    (r'e2vpt/', 'VPT, table of this backbone; not compared with the paper again'),
    (r'peers/convpass', 'README of PETL-ViT, seed 42'),
    (r'peers/', f'{BENCH}, table of VTAB-1k'),
    (r'pevit/zeroshot', "a third party's page of the benchmark"),
    (r'pevit/', 'README of PEViT, figure of 5 shots'),
    (r'vpetl/', f'{BENCH}, table of Video Swin-B'),
    (r'apt/full', "VideoMAE's MODEL_ZOO.md"),
)
METRICS: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
    (r'Structured: ([\d.]+) / ([\d.]+) / ([\d.]+)', ('Natural', 'Specialized', 'Structured')),
    (r'mean of (?:19|5|20)(?: over seeds [\d, ]+:|:)? ([\d.]+\d)', ('Top 1 Accuracy, mean of tasks', )),
    (r'mean of 3 groups ([\d.]+\d)', ('Top 1 Accuracy, mean of groups', )),
    (r'in %: published ([\d.]+\d)', ('Top 1 Accuracy', )),
)


@dataclass
class Recipe:
    """What the zoo says of one recipe.

    Attributes:
        path: Config, relative to the root.
        title: First sentence of its header.
        command: Its training or testing command, as printed.
        base: The official weight file.
        data: Names of the data, see ``mmpetl fetch``.
        dataset: Title of the data set or suite.
        task: 'Image Classification' or 'Action Recognition'.
        epochs: Epochs, 0 where nothing trains.
        batch: Samples per step and process.
        published: Metric -> value.
        source: Where the numbers are published; empty without numbers.
        costs: Numbers of ``mmpetl plan``.
    """
    path: str
    title: str
    command: str
    base: Base
    data: List[str]
    dataset: str
    task: str
    epochs: int
    batch: int
    published: Dict[str, float] = field(default_factory=dict)
    source: str = ''
    costs: Dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return Path(self.path).stem

    @property
    def folder(self) -> str:
        return Path(self.path).parent.name


def published(doc: str) -> Dict[str, float]:
    """Metrics that a header marks as published."""
    text = ' '.join(doc[doc.index('Expected'):].split())
    if 'published' not in text or 'published unknown' in text or text.startswith('Expected: unknown'):
        return {}
    found: Dict[str, float] = {}
    for pattern, names in METRICS:
        match = re.search(pattern, text)
        if match:
            found.update(zip(names, (float(v.rstrip('.')) for v in match.groups())))
    return found


def base_of(backbone: Any) -> Base:
    """The official weights that a backbone of a config loads."""
    if 'model_name' in backbone:
        return HUB[backbone.model_name]
    return FILES[Path(backbone.init_cfg.checkpoint).name]


def read(path: Path) -> Recipe:
    """One recipe, without its costs."""
    own = str(path.relative_to(ROOT))
    doc = path.read_text(encoding='utf-8').split('"""')[1]
    lines = [' '.join(line.split()) for line in doc.replace('\\\n', ' ').splitlines()]
    commands = [line for line in lines if re.match(r'(python tools/(?:train|test)|bash tools/dist_train)', line)]
    commands += [line for line in lines if line.startswith('mmpetl sweep')]
    cfg = Config.fromfile(str(path))
    fetched = next(line for line in lines if line.startswith('mmpetl fetch')).split()[2:]
    data = [name for name in fetched if name in DATA and name != 'elevater-prompts']
    suite = (cfg.get('task') or {}).get('suite')
    title = SUITES[suite].title if suite else VIDEO_SETS[data[0]].title
    numbers = published(doc)
    return Recipe(
        own, ' '.join(doc.split('\n\n')[0].split()), commands[0], base_of(cfg.model.backbone), data, title,
        'Image Classification' if suite else 'Action Recognition',
        cfg.train_cfg.max_epochs if cfg.get('train_cfg') else 0,
        (cfg.get('train_dataloader') or cfg.test_dataloader).batch_size, numbers,
        next(source for pattern, source in SOURCES if re.search(pattern, own)) if numbers else '')


def costs(path: str) -> Dict[str, int]:
    """Parameters, operations and memory of a recipe for the task that stands in it."""
    from mmpetl.costs.plan import plan
    from mmpetl.training.build import read_config
    found = plan(read_config(str(ROOT / path)), path)
    return {'Parameters': found.base, 'Trainable Parameters': found.without_head, 'Head Parameters': found.head,
            'FLOPs': round(found.gmac * 1e9), 'Training Memory': found.memory_bytes}


def recipes(anew: bool = False, compute: bool = True) -> List[Recipe]:
    """All recipes with their costs, which the metafiles keep."""
    kept: Dict[str, Dict[str, int]] = {}
    for folder in FOLDERS:
        metafile = ROOT / 'configs' / folder / 'metafile.yml'
        if metafile.is_file() and not anew:
            for model in yaml.safe_load(metafile.read_text(encoding='utf-8'))['Models']:
                kept[model['Config']] = {k: v for k, v in model['Metadata'].items() if k in COSTS}
    found = [read(path) for folder in FOLDERS for path in sorted((ROOT / 'configs' / folder).glob('*.py'))]
    for recipe in found:
        recipe.costs = kept.get(recipe.path, {})
        if not recipe.costs and compute:
            print(f'costs of {recipe.path}', file=sys.stderr)
            recipe.costs = costs(recipe.path)
    return found


COSTS = ('Parameters', 'Trainable Parameters', 'Head Parameters', 'FLOPs', 'Training Memory')


def metafile(folder: str, found: List[Recipe]) -> str:
    """One folder's metafile in the format of mmpretrain and mmaction2."""
    name, paper, url, card = FOLDERS[folder]
    collection = {'Name': name, 'Paper': {'Title': paper, 'URL': url}, 'README': f'docs/methods/{card}',
                  'Metadata': {'Training Techniques': ['Parameter-efficient transfer learning']}}
    models: List[Dict[str, Any]] = []
    for r in found:
        algorithm, digest = r.base.digest
        base = {'Name': r.base.name, 'File': r.base.file, 'URL': r.base.url, 'License': r.base.licence,
                'Size': r.base.size or 'unknown', **({algorithm.upper(): digest} if digest else {})}
        model = {
            'Name': r.name, 'In Collection': name, 'Config': r.path,
            'Metadata': {**r.costs, 'Epochs': r.epochs, 'Batch Size': r.batch, 'Training Data': r.dataset,
                         'Data': ', '.join(r.data), 'Command': r.command, 'Base': base, 'Measured': 'not measured here',
                         **({'Published': r.source} if r.source else {})},
            'Results': [{'Dataset': r.dataset, 'Task': r.task, 'Metrics': dict(r.published)}] if r.published else None,
            'Weights': None
        }
        models.append(model)
    text = yaml.safe_dump({'Collections': [collection], 'Models': models}, sort_keys=False, width=118,
                          allow_unicode=True)
    return f'# Generated by tools/model_zoo.py. Results are published numbers; nothing here was measured.\n{text}'


def _digest(base: Base) -> str:
    algorithm, digest = base.digest
    return f'{algorithm.upper()} {digest[:8]}{"" if len(digest) >= 32 else "..."}' if digest else 'none published'


def page(found: List[Recipe], counts: Tuple[int, int]) -> str:
    """The page of all recipes."""
    out = ['# Model zoo', '', 'Generated by `python tools/model_zoo.py --write` from the recipes; a test compares it '
           'with configs and models. No recipe was trained here: every number below is **published**, for planning; '
           '"measured" says "not measured here" throughout. Trainable parameters are those without the head, for the '
           'task that stands in the config; GMAC are multiply-adds of the backbone for one input; memory is what '
           '`mmpetl plan` computes for one training step in single precision.', '',
           '`mim search mmpetl` lists the recipes of an installation. `mim download` has nothing to get: no trained '
           'weights are published. Where a number is published, its table stands below; pages are not known.', '',
           f'{len(found)} recipes. Of {sum(counts)} values of the published scripts, {counts[0]} are those of the '
           f'recipes and {counts[1]} differ with a reason (`tests/configs/test_published_values.py`).', '']
    for folder, (name, paper, url, card) in FOLDERS.items():
        out += [f'## {name}', '', f'[{paper}]({url}); card: [{card}](methods/{card}).', '',
                '| recipe | base | data | trainable | head | GMAC | memory, GiB | published | measured |',
                '|---|---|---|---|---|---|---|---|---|']
        sources: List[str] = []
        for r in (r for r in found if r.folder == folder):
            if r.source and r.source not in sources:
                sources.append(r.source)
            numbers = ', '.join(f'{k} {v:g}' for k, v in r.published.items()).replace('Top 1 Accuracy', 'top-1')
            mark = f' [{sources.index(r.source) + 1}]' if r.source else ''
            c = r.costs
            out.append(f'| [{r.name}](../{r.path}) | {r.base.name} | {r.dataset} | {c["Trainable Parameters"]:,} | '
                       f'{c["Head Parameters"]:,} | {c["FLOPs"] / 1e9:.1f} | {c["Training Memory"] / 2**30:.2f} | '
                       f'{numbers or "unknown"}{mark} | not measured here |')
        out += ['', *(f'[{i}] {source}.' for i, source in enumerate(sources, 1)), *([''] if sources else [])]
    out += ['## Bases', '', '`mmpetl fetch NAME` puts them into the cache folder. Those with a slash in their name are '
            'on the Hugging Face hub, and timm or transformers fetches them when a recipe first runs ([without a '
            'network](other_libraries.md#weights-without-a-network)).', '',
            'Parameters are those of the backbone that a recipe builds from it. A size is that of the file; where no '
            'official page says it, the server tells it when the file is fetched.', '',
            '| name | what | parameters | file | size | digest | licence | page |', '|---|---|---|---|---|---|---|---|']
    used: Dict[str, Tuple[Base, set]] = {}
    for r in found:
        used.setdefault(r.base.name, (r.base, set()))[1].add(r.costs['Parameters'])
    out += [f'| {b.name} | {b.title} | {" or ".join(f"{n:,}" for n in sorted(sizes))} | [{b.file}]({b.url}) | '
            f'{f"{b.size:,} bytes" if b.size else "unknown"} | {_digest(b)} | {b.licence} | {b.page} |'
            for b, sizes in used.values()]
    out += ['', '## Data', '', '`mmpetl fetch NAME` gets what has an address, and says what is to be done by hand.', '',
            '| name | what | fetched | page |', '|---|---|---|---|']
    for data in DATA.values():
        how = 'by hand' if not data.files else f'{len(data.files)} file(s)' + (', then by hand' if data.steps else '')
        out.append(f'| {data.name} | {data.title} | {how} | {data.page} |')
    return '\n'.join(out) + '\n'


def files(found: List[Recipe]) -> Dict[str, str]:
    """Path -> text of everything that is generated."""
    sys.path.insert(0, str(ROOT / 'tests/configs'))
    from test_published_values import COUNTS
    made = {f'configs/{folder}/metafile.yml': metafile(folder, [r for r in found if r.folder == folder])
            for folder in FOLDERS}
    index = {'Import': list(made)}
    return {**made, INDEX: yaml.safe_dump(index), PAGE: page(found, COUNTS)}


def main() -> int:
    """Command line; 1 if files differ and are not written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', action='store_true', help='write the files')
    parser.add_argument('--costs', action='store_true', help='compute all costs anew')
    args = parser.parse_args()
    differ = 0
    for name, text in files(recipes(args.costs)).items():
        path = ROOT / name
        if not path.is_file() or path.read_text(encoding='utf-8') != text:
            differ += 1
            print(f'{name} {"written" if args.write else "differs"}')
            if args.write:
                path.write_text(text, encoding='utf-8')
    return int(bool(differ) and not args.write)


if __name__ == '__main__':
    sys.exit(main())
