# SPDX-License-Identifier: Apache-2.0
"""The HTML page of sweeps and of runs: what it holds, that nothing in it is markup that came from files, and what a
browser says."""

import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from safetensors.torch import load_file

from mmpetl.commands.main import main
from mmpetl.sweeps import report_pages
from mmpetl.sweeps.compare import compare, interval
from mmpetl.sweeps.report import Cell as Scores
from mmpetl.sweeps.report import Row
from mmpetl.sweeps.report_html import Cell, Picture, Sample, Section, Table, Text, render
from mmpetl.sweeps.report_pages import (
    class_table,
    confusion_section,
    draw_curves,
    maps_section,
    repeat,
    results_table,
    run_page,
    sweep_page,
)
from mmpetl.sweeps.run_facts import Outcome, outcome_of, read_curves, thumbnail
from mmpetl.training.build import build_model

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy_run  # noqa: E402

SUITE = str(Path(__file__).parents[2] / 'configs/small_suite/suite.json')
HOSTILE = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", '{{ 7*7 }}{% raw %}',
           '</table></details></script>', 'javascript:alert(1)', '\u202egnp.exe', '\x1b[31mred\x00', '$\\frac{', '猫 & Ünïcode']


class Reader(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def checked(text):
    """A page after the checks that every page must pass: its own two scripts' worth of tags, and no address."""
    page = Reader(text)
    assert [tag for tag, _ in page.tags].count('script') == 1 and not [a for t, a in page.tags if t == 'script' and a]
    assert not [t for t, _ in page.tags if t in ('iframe', 'object', 'embed', 'form', 'base', 'svg', 'a')]
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith('on')], (tag, attributes)
        for key in ('src', 'href'):
            assert attributes.get(key, 'data:').startswith('data:')
    assert not re.search('[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]', text)
    assert 'http://' not in text and 'https://' not in text
    return page


def outcome(names):
    """Of every class three samples, the last of which is taken for the next class."""
    count = len(names)
    labels = np.repeat(np.arange(count), 3)
    guesses = labels.copy()
    guesses[2::3] = (guesses[2::3] + 1) % count
    return Outcome(labels, np.eye(count)[guesses], names)


def test_hostile_names_are_text():
    found = outcome(HOSTILE)
    sections = [Section(name, name, [Picture('data:,', name)], [class_table(found), Table([name], [[Cell(name)]], name)],
                        [Sample('data:,', name, name, 'other', name)], [Text(name, f'{name}\n{name}')]) for name in HOSTILE]
    page = checked(render(HOSTILE[0], [*sections, confusion_section(found)]))
    text = ''.join(page.text)
    for name in HOSTILE[:6]:
        assert text.count(name) > 5
    assert '\\u202egnp.exe' in text and '\\x1b[31mred\\x00' in text and '49' not in text


def test_classes_and_confusions_are_counted():
    table = class_table(outcome(['a', 'b', 'c']))
    assert [[cell.text for cell in row] for row in table.rows] == [
        ['a', '3', '66.7', '66.7', 'b (1)'], ['b', '3', '66.7', '66.7', 'c (1)'], ['c', '3', '66.7', '66.7', 'a (1)']]
    matrix = confusion_section(outcome(['a', 'b', 'c'])).tables[0]
    assert [[cell.text for cell in row] for row in matrix.rows] == [
        ['a', '2', '1', ''], ['b', '', '2', '1'], ['c', '1', '', '2']] and matrix.rows[0][1].shade == pytest.approx(2 / 3)
    many = confusion_section(outcome([str(i) for i in range(41)]))
    assert not many.tables and many.pictures[0].uri.startswith('data:image/png')


def test_thumbnails_are_what_the_model_saw():
    import io

    from PIL import Image
    red = torch.zeros(3, 20, 10, dtype=torch.uint8)
    red[2] = 255  # BGR
    seen = Image.open(io.BytesIO(thumbnail(red, swap=True)))
    assert seen.size == (56, 112) and np.asarray(seen)[50, 20, 0] > 240 > 15 > np.asarray(seen)[50, 20, 2]
    clip = torch.zeros(2, 3, 5, 8, 8)
    clip[0, 1, 2] = 7.5  # the middle frame of the first clip is green
    assert np.asarray(Image.open(io.BytesIO(thumbnail(clip, swap=False))))[50, 50].tolist()[1] > 240
    assert Image.open(io.BytesIO(thumbnail(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), True))).size == (112, 112)


def rows():
    made = []
    for name, score in (('lora_x', 60.), ('vpt_x', 50.), ('<b>apt</b>_x', 55.)):
        scores = [score, score + 1, score + 2.5]
        cell = Scores(scores, scores, 3, 1000, 10, by_run={f'seed={i}': s for i, s in enumerate(scores)}, run_seconds=9.,
                      chosen='lr=0.1')
        made.append(Row(name, SUITE, {'digits': cell}, computed_bytes=2**30, family='adapters', folder='/nowhere'))
    made[2].cells['digits'].errors.append('digits/final: <img src=x>')
    return made


def test_page_of_sweeps():
    page = checked(sweep_page(rows()))
    text = ''.join(page.text)
    assert 'Small suite: 3 methods' in text and '61.17 ± 1.26' in text and '± 3.13' in text and 'digits: lr=0.1' in text
    assert '<img src=x>' in text and sum(tag == 'img' for tag, _ in page.tags) == 1
    head = results_table(rows()).head
    assert list(head[:3]) == ['method', 'family', 'digits'] and len(head) == len(results_table(rows()).rows[0])


def test_columns_are_there_once():
    made = rows()
    assert 'mean of this task' in results_table(made).head and 'mean of 4' in results_table(made).head
    for row in made:
        row.cells.update({task: row.cells['digits'] for task in ('quickdraw', 'pneumonia', 'dsprites_loc')})
    head = results_table(made).head
    assert len(set(head)) == len(head) and 'mean of 4' in head and not [name for name in head if 'these' in name]


@pytest.mark.parametrize('entry, unit', [('"epoch": 1, ', 'epoch'), ('', 'iteration')])
def test_what_an_axis_counts(entry, unit, tmp_path, monkeypatch):
    """That of the runs that are there; a folder without logs has no say."""
    seen = []
    monkeypatch.setattr(report_pages, 'draw_curves', lambda panels, file: seen.extend(panels))
    logs = tmp_path / 'run/20260101_000000/vis_data'
    logs.mkdir(parents=True)
    lines = [f'{{{entry}"loss": 1.0, "iter": {i}, "step": {i}}}\n{{"accuracy/top1": 5.0, "step": {i}}}\n' for i in (1, 2)]
    (logs / 'scalars.json').write_text(''.join(lines))
    (logs / 'config.py').write_text('')
    (tmp_path / 'empty').mkdir()
    report_pages.curve_pictures({name: str(tmp_path / name) for name in ('run', 'empty')})
    assert [panel[0] for panel in seen] == ['iteration', unit]


def test_iterations_are_whole():
    file = io.BytesIO()
    draw_curves([('iteration', 'loss', {'run': [(1, 2.), (2, 1.), (3, .5)]})], file)
    ticks = [float(text) for text in re.findall(r'<!-- ([\d.]+) -->', file.getvalue().decode())]
    assert {1., 2., 3.} <= {*ticks} and not {1.5, 2.5, 1.25} & {*ticks}


def test_comparison_of_two_methods():
    first, second = rows()[0], rows()[1]
    first.cells['digits'].by_run = {'seed=0': 61., 'seed=1': 64., 'seed=2': 60., 'seed=7': 0.}
    second.cells['digits'].by_run = {'seed=0': 59., 'seed=1': 58., 'seed=2': 59.}
    found = compare(first, second)
    assert found.pairs == {'digits, seed=0': 2., 'digits, seed=1': 6., 'digits, seed=2': 1.} and found.mean == 3.
    # differences 2, 6, 1: mean 3, standard deviation sqrt(7), t = 3 / sqrt(7 / 3) = 1.964 with 2 degrees of freedom
    assert found.half == pytest.approx(4.302653 * (7 / 3)**.5, rel=1e-5) and found.t_test == pytest.approx(0.18843, abs=1e-4)
    assert found.wilcoxon == pytest.approx(0.25)  # all three positive: 2 / 2^3
    assert str(found).startswith('lora_x - vpt_x: +3.00 ± 6.57 (95 %) points, 3 pairs, paired t-test p = 0.188')
    same = compare(first, first)
    assert same.mean == 0 and same.t_test is None and interval([1.]) is None
    second.cells['digits'].by_run = {'seed=9': 1.}
    with pytest.raises(ValueError, match='share no finished run'):
        compare(first, second)


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def a_run(tmp_path_factory):
    """A work dir as `mmpetl train` leaves it, on pictures of which one class has a hostile name."""
    home = tmp_path_factory.mktemp('run')
    config = toy_run.write(home, "custom_hooks = [dict(type='mmpetl.AdapterHook')]\n"
                           "model['backbone'].update(type='mmpetl.VisionTransformer', petl=[dict(type='LoRA', rank=2), "
                           "dict(type='VPT', num_tokens=3)], "
                           f"init_cfg=dict(type='Pretrained', checkpoint=r'{home}/base.pth'))\n"
                           "dataset['classes'] = ['<i>dark</i>', 'light']\n")
    cfg = Config.fromfile(config)
    torch.save(dict(build_model(cfg, weights=False).backbone.state_dict()), home / 'base.pth')
    old = sys.argv
    sys.argv = ['/usr/bin/mmpetl', 'train', str(config), '--set', 'note=<b>']
    try:
        assert not main(['train', str(config), '--work-dir', str(home / 'out')])
    finally:
        sys.argv = old
    return home / 'out'


def test_page_of_a_run(a_run, capsys):
    training, testing = read_curves(str(a_run))
    assert len(training['loss']) == 6 and len(testing['accuracy/top1']) == 2
    assert main(['report', str(a_run)]) == 0
    text = (a_run / 'report.html').read_text(encoding='utf-8')
    page = checked(text)
    shown = ''.join(page.text)
    assert capsys.readouterr().out.strip().endswith('report.html')
    last = testing['accuracy/top1'][-1][1]
    right = round(24 * last / 100)
    assert f'{right} of 24 test samples right ({100 * right / 24:.2f} %), by adapter.safetensors' in shown
    # curves, thumbnails, the chart of the prompts, maps
    assert sum(tag == 'img' for tag, _ in page.tags) == 1 + 12 + 1 + 6 and 'petl=[' in shown
    assert len(re.findall(r'score of (light|<i>dark</i>) [+-]\d+\.\d\d over an empty picture without prompts: picture '
                          r'[+-]\d+\.\d\d, prompts [+-]\d+\.\d\d(?:, lost between the steps [+-]\d+\.\d\d)?; \d+ % of the attention', shown)) == 6
    # without the sweep that it belongs to, a run has no command of its own: the page gives one, and it works
    name = next(iter(a_run.glob('*/vis_data/config.py')))
    assert repeat(str(a_run)) == f'mmpetl train {name} --work-dir work_dirs/again'
    assert main([*repeat(str(a_run)).split()[1:-1], str(a_run.parent / 'again')]) == 0
    again, first = (load_file(str(folder / 'adapter.safetensors')) for folder in (a_run.parent / 'again', a_run))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert main(['report', str(a_run), '--maps', '0']) == 0
    assert 'What the model looked at' not in (a_run / 'report.html').read_text(encoding='utf-8')
    capsys.readouterr()
    assert 'mmpetl train' in shown and "'note=<b>'" in shown
    assert 'data/dark' in shown or 'dark/dark' in shown or 'light/light' in shown
    assert main(['report', str(a_run), '--no-test', '--out', str(a_run.parent / 'pages')]) == 0
    short = (a_run.parent / 'pages/out.html').read_text(encoding='utf-8')
    assert 'test samples' not in ''.join(checked(short).text) and 'Config' in short


def test_maps_are_counted_as_they_are_made(a_run):
    seen = []
    section, = maps_section(outcome_of(str(a_run), worst=3), 2, lambda *at: seen.append(at))
    assert seen == [(0, 2), (1, 2)] and len(section.samples) == 2


def test_a_run_without_an_adapter_is_one_clear_line(a_run, tmp_path, capsys):
    shutil.copytree(a_run, tmp_path / 'copy')
    for path in [*(tmp_path / 'copy').glob('*.safetensors'), *(tmp_path / 'copy').glob('*.pth')]:
        path.unlink()
    assert main(['report', str(tmp_path / 'copy')]) == 1
    assert 'holds no adapter and no checkpoint' in capsys.readouterr().err
    assert main(['report', str(tmp_path / 'copy'), '--no-test']) == 0


# -- in a browser -----------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def browse(path, *options, fragment=''):
    """(DOM after the scripts have run, lines of the console)."""
    done = subprocess.run([
        BROWSER, '--headless=new', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', '--virtual-time-budget=3000',
        f'--user-data-dir={path.parent}/profile', *options, f'file://{path}{fragment}'], capture_output=True, text=True,
        timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason='no browser: apt-get install chromium')
def test_pages_in_a_browser(a_run, tmp_path):
    bad = tmp_path / 'bad.html'
    bad.write_text('<script>console.error("seen")</script>')
    assert browse(bad, '--dump-dom')[1]  # what the console says does arrive here
    for name, text in (('sweeps', sweep_page(rows())), ('run', run_page(str(a_run))),
                       ('hostile', render(HOSTILE[0], [Section(n, n, texts=[Text(n, n)]) for n in HOSTILE]))):
        path = tmp_path / f'{name}.html'
        path.write_text(text, encoding='utf-8')
        dom, console = browse(path, '--dump-dom')
        assert not console and '</main>' in dom, (name, console)
    for column, first in ((1, 'vpt'), (7, 'lora')):  # names descending; the mean descending
        dom, console = browse(tmp_path / 'sweeps.html', '--dump-dom', fragment=f'#sort={column}')
        body = dom[dom.index('<tbody>'):]
        assert not console and re.search(r'<th scope="row">([^<]*)', body)[1] == first and 'descending' in dom
    injected = tmp_path / 'injected.html'  # even if something slipped through: the policy of the page stops it
    injected.write_text(sweep_page(rows()).replace('<h1>', '<script>document.title="owned"</script><h1>'), encoding='utf-8')
    dom, console = browse(injected, '--dump-dom')
    assert '<title>owned' not in dom and 'Content Security Policy' in ''.join(console)
    browse(tmp_path / 'run.html', f'--screenshot={tmp_path}/run.png', '--window-size=1300,1800')
    assert (tmp_path / 'run.png').stat().st_size > 20000
