# SPDX-License-Identifier: Apache-2.0
"""From a folder of one's own to predictions: ``data make``, ``data check``, train, test, infer, at any size."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

import mmpetl
from mmpetl.commands.main import main
from mmpetl.training.own_config import METHODS, bases, choose, schedule
from mmpetl.training.run import test as run_test
from mmpetl.training.run import train

COLOURS = {'daisy': (240, 240, 230), 'poppy': (210, 40, 40), 'red tulip': (40, 60, 190)}


def pictures(root, count, suffix='.png', colours=COLOURS, size=(40, 48)):
    """Class folders of noisy pictures of one colour; no two are alike."""
    random = np.random.default_rng(0)
    for name, colour in colours.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise = random.normal(0, 20, (*size, 3))
            Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(root / name / f'{i:02d}{suffix}')
    return root


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """A tiny ViT with its weights, in place of the base that is too large to test with."""
    from mmpretrain.models import VisionTransformer
    folder = tmp_path_factory.mktemp('base')
    torch.manual_seed(0)
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    model = VisionTransformer(arch=arch, img_size=224, patch_size=56)
    torch.save(dict(state_dict=model.state_dict()), folder / 'base.pth')
    return (f'model = dict(backbone=dict(arch={dict(_delete_=True, **arch)!r}, patch_size=56, layer_scale_init_value=0., '
            f"init_cfg=dict(checkpoint='{folder}/base.pth')), head=dict(in_channels=32))\n"
            'for _loader in (train_dataloader, val_dataloader, test_dataloader):\n'
            '    if _loader:\n'
            '        _loader.update(num_workers=0, persistent_workers=False)\n')


def shrink(config, tiny):
    """The made config with the tiny model; everything else stays."""
    path = Path(config).parent / 'tiny.py'
    loaders = '\n'.join(f'{n}_dataloader = dict(_base_.{n}_dataloader) if _base_.get("{n}_dataloader") else None'
                        for n in ('train', 'val', 'test'))
    path.write_text(f"_base_ = './{Path(config).name}'\n{loaders}\n{tiny}")
    return str(path)


def make(*words):
    return main(['data', 'make', *map(str, words)])


@pytest.mark.parametrize('count', [1, 3, 16])
def test_make_train_test_infer(count, tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = pictures(tmp_path / 'flowers', count)
    (folder / '.ipynb_checkpoints').mkdir()
    assert make(folder, '--out', 'mine', *(['--epochs', 10] if count > 1 else [])) == 0
    said = capsys.readouterr().out
    assert f'{3 * count} pictures of 3 classes, 48 x 40 pixels' in said and 'mmpetl train mine/flowers_lora_dinov2' in said
    assert ('too few pictures to hold any out' in said) == (count == 1)
    assert ('too few pictures for a validation part' in said) == (count == 3)
    config = shrink('mine/flowers_lora_dinov2-small.py', tiny)
    cfg = Config.fromfile(config)
    assert cfg.max_epochs == (100 if count == 1 else 10) and not cfg.train_dataloader.drop_last
    assert cfg.train_dataloader.batch_size == {1: 3, 3: 6, 16: 30}[count] and bool(cfg.val_dataloader) == (count == 16)
    train([config, '--work-dir', 'out'])
    adapter = 'out/adapter.safetensors'
    metrics = run_test([config, adapter, '--work-dir', 'out/test', '--dump', 'scores.pkl'])
    scores = {Path(s['img_path']).relative_to(folder): s['pred_score'].numpy() for s in pickle.load(open('scores.pkl', 'rb'))}
    assert len(scores) == {1: 3, 3: 3, 16: 9}[count] and 0 <= metrics['accuracy/top1'] <= 100
    found = mmpetl.infer(config, adapter, [str(folder / name) for name in scores], device='cpu')
    for result, (name, score) in zip(found, scores.items()):
        assert np.abs(result['pred_scores'] - score).max() < 1e-5, name
        assert result['pred_class'] in COLOURS
    if count == 16:
        assert metrics['accuracy/top1'] == 100.  # colours alone
        assert [r['pred_class'] for r in found] == [name.parts[0] for name in scores]
        unlabelled(config, adapter, folder, scores)


def unlabelled(config, adapter, folder, scores):
    """Predictions for pictures without labels: a list, and a folder."""
    Path('new.txt').write_text('\n'.join(map(str, scores)))
    options = ['test_dataloader.dataset.with_label=False', f'test_dataloader.dataset.ann_file={Path("new.txt").absolute()}']
    with pytest.raises(ValueError, match='with_label=False.*--dump'):
        run_test([config, adapter, '--work-dir', 'out/new', '--cfg-options', *options])
    for more in (options, [options[0], 'test_dataloader.dataset.ann_file=']):
        assert run_test([config, adapter, '--work-dir', 'out/new', '--dump', 'new.pkl', '--cfg-options', *more]) == {}
        found = {Path(s['img_path']).relative_to(folder): s for s in pickle.load(open('new.pkl', 'rb'))}
        assert len(found) == (len(scores) if more is options else 48)
        for name, score in scores.items():
            assert np.abs(found[name]['pred_score'].numpy() - score).max() < 1e-5 and 'gt_label' not in found[name]


def lines(path):
    return [(line.rsplit(' ', 1)[0], int(line.rsplit(' ', 1)[1])) for line in Path(path).read_text().splitlines()]


def test_the_cut_is_stratified_seeded_and_written_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = pictures(tmp_path / 'flowers', 10)
    assert make(folder, '--method', 'linear') == 0
    parts = {part: lines(f'own_data/flowers/{part}.txt') for part in ('train', 'val', 'test')}
    for part, each in (('train', 6), ('val', 2), ('test', 2)):
        assert [[c for _, c in parts[part]].count(i) for i in range(3)] == [each] * 3
    everything = [name for found in parts.values() for name, _ in found]
    assert len(set(everything)) == len(everything) == 30
    assert all(name.split('/')[0] == sorted(COLOURS)[c] for found in parts.values() for name, c in found)
    # another method on the same lists; another seed would change them
    assert make(folder, '--method', 'adaptformer', 'lora') == 0
    assert Path('own_data/flowers/flowers_adaptformer-lora_dinov2-small.py').is_file()
    assert make(folder, '--method', 'VPT', '--seed', 1) == 1
    assert 'train.txt is there already' in capsys.readouterr().err
    assert make(folder, '--method', 'linear') == 1
    assert 'flowers_linear_dinov2-small.py is there already' in capsys.readouterr().err
    assert make(folder, '--method', 'linear', '--seed', 1, '--overwrite', '--val', 0, '--test', 0.5) == 0
    assert len(lines('own_data/flowers/train.txt')) == len(lines('own_data/flowers/test.txt')) == 15
    assert not Path('own_data/flowers/val.txt').exists()


def test_groups_twins_and_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = pictures(tmp_path / 'flowers', 12)
    rows = [(f'{name}/{i:02d}.png', name, f'p{c}{i // 3}') for c, name in enumerate(COLOURS) for i in range(12)]
    table = '\r\n'.join(['image;class;patient', *(';'.join(row) for row in rows)])
    (folder / 'table.csv').write_bytes(table.encode('utf-16'))
    assert make(folder / 'table.csv') == 0
    assert "same 'patient' stay in the same part" in capsys.readouterr().out
    group = {name: patient for name, _, patient in rows}
    seen = {part: {group[name] for name, _ in lines(f'own_data/table/{part}.txt')} for part in ('train', 'val', 'test')}
    assert not seen['train'] & seen['val'] and not seen['train'] & seen['test'] and not seen['val'] & seen['test']
    assert sum(map(len, seen.values())) == 12 and seen['test'] and seen['val']
    # equal bytes stay together too, and are named where they lie under two classes
    for i in range(1, 12):
        (folder / 'daisy' / f'{i:02d}.png').write_bytes((folder / 'daisy/00.png').read_bytes())
    (folder / 'poppy/00.png').write_bytes((folder / 'red tulip/00.png').read_bytes())
    assert make(folder, '--out', 'the twins') == 0
    said = ' '.join(capsys.readouterr().out.split())
    assert 'are the same picture under two classes' in said and "mmpetl train 'the twins/" in said
    assert len({part for part in ('train', 'val', 'test') for name, _ in lines(f'the twins/{part}.txt') if 'daisy' in name}) == 1
    # parts that a column names stay
    (folder / 'split.csv').write_text('path,label,split\n' + ''.join(
        f'{name},{label},{"test" if name[-6:-4] in ("00", "01") else "train"}\n' for name, label, _ in rows if label != 'daisy'))
    assert make(folder / 'split.csv', '--val', 0) == 0
    assert sorted(lines('own_data/split/test.txt')) == [(f'{n}/0{i}.png', c) for c, n in ((0, 'poppy'), (1, 'red tulip')) for i in (0, 1)]


def test_ready_parts_and_missing_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / 'set/train', 6)
    pictures(tmp_path / 'set/test', 2, colours={k: v for k, v in COLOURS.items() if k != 'poppy'})
    (tmp_path / 'set/train/empty one').mkdir()
    assert make('set', '--val', 0.2) == 0
    said = capsys.readouterr().out
    assert 'note: 1 of 4 classes have no picture: empty one' in said
    assert {n.split('/')[0] for n, _ in lines('own_data/set/test.txt')} == {'test'}
    assert lines('own_data/set/test.txt')[-1] == ('test/red tulip/01.png', 3)
    assert {n.split('/')[0] for part in ('train', 'val') for n, _ in lines(f'own_data/set/{part}.txt')} == {'train'}
    assert len(lines('own_data/set/val.txt')) == 3
    assert main(['data', 'check', 'set', '--sheet', 'sheet.png']) == 1
    said = capsys.readouterr().out
    assert 'problem: 1 of 4 classes have no picture: empty one' in said


def test_wide_pictures_get_a_window(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for c, name in enumerate(('low', 'high')):
        (tmp_path / 'scans' / name).mkdir(parents=True)
        for i in range(5):
            values = np.full((30, 30), 500 + 3000 * c + i, np.uint16)
            Image.fromarray(values).save(tmp_path / 'scans' / name / f'{i}.png')
    assert main(['data', 'check', 'scans']) == 1
    assert 'window=(0, 4095)' in capsys.readouterr().out
    assert make('scans') == 0
    assert 'shown by window=(0, 4095)' in capsys.readouterr().out
    assert main(['data', 'check', 'own_data/scans/scans_lora_dinov2-small.py', '--sheet', 'sheet.png']) == 0
    sheet = np.asarray(Image.open('sheet.png'))
    assert set(np.unique(sheet[40:60, 40:60])) <= {218, 219} and 'no problem' in capsys.readouterr().out


@pytest.mark.parametrize('words, error', [
    (['flowers', '--base', 'dinov2-smal'], "unknown --base 'dinov2-smal'.*did you mean 'dinov2-small'"),
    (['flowers', '--method', 'LoRa2'], "unknown --method 'LoRa2'.*did you mean 'LoRA'"),
    (['flowers', '--base', 'videomae-small'], '--base videomae-small is for videos, these are pictures'),
    (['flowers', '--method', 'linear', 'LoRA'], 'linear stands alone'),
    (['flowers', '--base', 'swin-base_in22k', '--method', 'SynQT'], 'SynQT'),
    (['flowers', '--val', '0.5', '--test', '0.5'], '--val 0.5 and --test 0.5'),
    (['flowers/daisy'], 'flowers/daisy holds no class folders'),
    (['nowhere'], 'nowhere is neither a folder nor a list'),
    (['empty'], 'holds no picture .* and no video'),
    (['one'], 'one class only'),
    (['both'], 'holds 3 pictures and 1 videos: choose by --kind'),
    (['mixed'], 'parts and classes side by side'),
    (['broken'], '1 of 6 pictures cannot be read.*--skip-unreadable'),
    (['flowers/list.csv'], 'list.csv, line 3: .*nothing.png does not exist; --root'),
    (['flowers/list.csv', '--group-column', 'patent'], "no column 'patent'.*did you mean 'patient'"),
    (['flowers/list.csv', '--label-column', 'klass'], "names no column 'klass'"),
    (['flowers/parts.csv'], "parts.csv, line 2: 'trian' .*did you mean 'train'"),
])
def test_wrong_input_is_one_line(words, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('flowers', 'broken', 'both', 'mixed/train'):
        pictures(tmp_path / name, 1 if name == 'both' else 2, size=(8, 8))
    pictures(tmp_path / 'one', 2, colours={'only': (1, 2, 3)}, size=(8, 8))
    (tmp_path / 'empty/a').mkdir(parents=True)
    (tmp_path / 'mixed/other').mkdir()
    (tmp_path / 'both/daisy/a.mp4').write_bytes(b'0')
    (tmp_path / 'broken/poppy/00.png').write_bytes(b'\x89PNG broken')
    (tmp_path / 'flowers/list.csv').write_text('path,label,patient\npoppy/00.png,a,1\nnothing.png,b,2\n')
    (tmp_path / 'flowers/parts.csv').write_text('path,label,split\npoppy/00.png,a,trian\npoppy/01.png,b,test\n')
    assert make(*words) == 1
    said = capsys.readouterr().err.strip()
    assert re.search(error, said) and '\n' not in said, said
    assert not list(tmp_path.glob('own_data/*/*.py')) and not list(tmp_path.glob('own_data/*/.*'))


def test_broken_files_are_left_out_when_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / 'flowers', 3, size=(8, 8))
    (tmp_path / 'flowers/poppy/00.png').write_bytes(b'')
    assert main(['data', 'check', 'flowers']) == 1
    assert 'poppy/00.png is empty' in capsys.readouterr().out
    assert make('flowers', '--skip-unreadable') == 0
    said = capsys.readouterr().out
    assert 'unreadable' in said and '1 unreadable picture is left out' in said
    assert 'poppy/00.png' not in Path('own_data/flowers/train.txt').read_text() + Path('own_data/flowers/test.txt').read_text()
    for path in Path('flowers').glob('*/*.png'):
        path.write_bytes(b'')
    assert make('flowers', '--skip-unreadable', '--out', 'other') == 1
    assert 'of the 9 pictures can be read: give others' in capsys.readouterr().err and not Path('other').exists()


def test_check_finds_pictures_in_training_and_test(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = pictures(tmp_path / 'flowers', 5)
    assert make(folder) == 0
    config = 'own_data/flowers/flowers_lora_dinov2-small.py'
    assert main(['data', 'check', config, '--json', 'report.json', '--samples', '6']) == 0
    said = capsys.readouterr().out
    assert 'no problem found' in said and '6 samples' in said and 'red tulip' in said
    assert Image.open('work_dirs/data_check/flowers_lora_dinov2-small.png').size == (6 * 166 + 6, 200)
    Path('other.py').write_text(f"_base_ = '{config}'\nmodel = dict(head=dict(num_classes=4))\n")
    assert main(['data', 'check', 'other.py']) == 1
    assert 'model.head.num_classes=4, but the data have 3 classes' in capsys.readouterr().out
    (name, _), *_ = lines('own_data/flowers/train.txt')
    (held_out, _), *_ = lines('own_data/flowers/test.txt')
    (folder / held_out).write_bytes((folder / name).read_bytes())
    assert main(['data', 'check', config]) == 1
    assert f'1 held-out pictures are byte for byte in training, first {folder}/{held_out}' in capsys.readouterr().out
    (folder / held_out).unlink()
    with open('own_data/flowers/val.txt', 'a') as file:
        file.write('daisy/00.png 7\n')
    assert main(['data', 'check', config]) == 1
    said = capsys.readouterr().out
    assert f'{held_out} is missing' in said or f'{held_out}, which does not exist' in said
    assert 'val.txt, line 4: label 7' in said


@pytest.mark.parametrize('kind', ['picture', 'video'])
def test_every_base_and_method_can_be_chosen(kind):
    for base in bases(kind):
        for method in METHODS:
            choice = choose(kind, base, [method.lower()])
            assert choice.methods == [method] and choice.title == f'{method.lower()}_{base}'
    assert choose(kind).methods == ['LoRA']
    assert len(bases('picture')) >= 6 and len(bases('video')) >= 4


def test_sizes_of_the_schedule():
    for samples, largest, want in [(2, 32, (2, 1, 100)), (33, 32, (32, 2, 100)), (320, 32, (32, 10, 40)),
                                   (10**5, 32, (32, 3125, 10)), (3, 8, (3, 1, 100))]:
        assert schedule(samples, largest) == want


def _block(page, language, word):
    """The block of a page that holds a word."""
    text = (Path(__file__).parents[2] / page).read_text(encoding='utf-8')
    return next(b for b in re.findall(rf'```{language}\n(.*?)```', text, re.S) if word in b)


@pytest.mark.parametrize('page', ['README.md', 'docs/own_data.md', 'docs/video.md'])
def test_the_commands_of_the_pages_are_those_that_there_are(page, tmp_path, monkeypatch):
    """Every ``mmpetl`` line parses, and what it names is what ``data make`` writes."""
    from mmpetl.commands.main import build_parser
    text = (Path(__file__).parents[2] / page).read_text(encoding='utf-8')
    blocks = [b for b in re.findall(r'```(?:bash)?\n(.*?)```', text, re.S) if 'own_data/' in b]
    assert any('data make' in b for b in blocks)
    block = ''.join(blocks).replace('\\\n', ' ')
    words = [line.split('#')[0].split() for line in block.splitlines() if line.startswith('mmpetl')]
    for line in words:
        build_parser(line[1]).parse_args(line[1:])
    made = {word for line in words for word in line if word.startswith('own_data/')}
    kind = 'video' if page == 'docs/video.md' else 'picture'
    name = 'clips' if kind == 'video' else 'photos'
    assert made == {f'own_data/{name}/{name}_{choose(kind).title}.py'}


def test_the_config_by_hand(tmp_path):
    pictures(tmp_path / 'train', 2)
    for part in ('val', 'test'):
        pictures(tmp_path / part, 1, colours={k: v for k, v in COLOURS.items() if k != 'daisy'})
    text = _block('docs/own_data.md', 'python', "classes='train'").replace('/data/flowers', str(tmp_path))
    text = text.replace("'../quickstart", f"'{Path(__file__).parents[2]}/configs/quickstart")
    (tmp_path / 'own.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'own.py')
    from mmpetl.registry import DATASETS
    for loader, labels in ((cfg.train_dataloader, [0, 0, 1, 1, 2, 2]), (cfg.val_dataloader, [1, 2]), (cfg.test_dataloader, [1, 2])):
        data = DATASETS.build(loader.dataset)
        assert data.CLASSES == tuple(COLOURS) and data.get_gt_labels().tolist() == labels
    lists = text.replace("classes='train', ann_file=''", "classes='classes.txt', ann_file='list.txt'")
    (tmp_path / 'classes.txt').write_text('\n'.join(COLOURS))
    (tmp_path / 'list.txt').write_text('poppy/00.png 1\n')
    (tmp_path / 'own.py').write_text(lists)
    assert DATASETS.build(Config.fromfile(tmp_path / 'own.py').train_dataloader.dataset).get_gt_labels().tolist() == [1]
    (tmp_path / 'own.py').write_text(lists.replace("'classes.txt'", 'None'))
    assert DATASETS.build(Config.fromfile(tmp_path / 'own.py').train_dataloader.dataset).CLASSES is None


def test_progress_without_a_terminal(monkeypatch, capsys):
    from mmpetl.commands import progress
    monkeypatch.setattr(progress, 'PAUSE', 0.)
    with progress.bar('pictures') as tick:
        tick(1, 2)
    assert capsys.readouterr().out == '1 of 2 pictures\n'


def test_names_that_may_mean_no_label_are_noted(tmp_path, monkeypatch, capsys):
    """'none' may be a class, and class folders and class files say what they mean; values that were measured are none."""
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / 'photos', 4, colours=dict(none=(9, 9, 9), nan=(99, 99, 99)))
    assert make('photos', '--out', 'o1') == 0
    said = capsys.readouterr().out
    assert all(f"the class '{name}' is taken as a name" in ' '.join(said.split()) for name in ('none', 'nan'))
    files = sorted(p.relative_to(tmp_path) for p in tmp_path.glob('photos/*/*.png'))
    Path('values.csv').write_text('path,label\n' + ''.join(f'{p},{i % 2 / 4 + .5}\n' for i, p in enumerate(files)))
    assert make('values.csv', '--out', 'o2') == 0
    assert '2 classes are numbers with a fraction, first 0.5' in ' '.join(capsys.readouterr().out.split())
    Path('named.txt').write_text('nan\ncat\n')
    Path('named.csv').write_text('path,label\n' + ''.join(f'{p},{("nan", "cat")[i % 2]}\n' for i, p in enumerate(files)))
    assert make('named.csv', '--out', 'o3') == 1 and "label 'nan'" in capsys.readouterr().err
    assert make('named.csv', '--out', 'o3', '--classes', 'named.txt') == 0


def test_frames_of_films_and_sides_are_noted(tmp_path, monkeypatch, capsys):
    """Frames of a film in training and test say nothing; a mirrored picture of 'turn left' is of another class."""
    monkeypatch.chdir(tmp_path)
    for name, films in (('turn_left', ('a', 'b')), ('stop', ('c', ))):
        for film in films:
            source = pictures(tmp_path / 'once' / film, 10, colours={film: (90, 20, 30)}) / film
            (tmp_path / 'frames' / name).mkdir(parents=True, exist_ok=True)
            source.rename(tmp_path / 'frames' / name / film)
    assert make('frames') == 0
    said = capsys.readouterr().out
    assert re.search(r'note: 3 folders such as (stop|turn_left)/[abc] hold pictures numbered in a row, as frames of a film',
                     said), said
    key = r'train_dataloader\.dataset\.pipeline\.(\d)\.prob=0'
    found = re.search(rf"note: training mirrors half of the pictures, and there is a class 'turn_left': .* --set {key}", said)
    steps = Config.fromfile('own_data/frames/frames_lora_dinov2-small.py').train_dataloader.dataset.pipeline
    assert steps[int(found[1])].type == 'RandomFlip'
    pictures(tmp_path / 'plain', 9, colours={'leftover': (9, 200, 9), 'brightness': (200, 9, 9)})
    assert make('plain') == 0 and 'note' not in capsys.readouterr().out
