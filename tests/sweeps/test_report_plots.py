# SPDX-License-Identifier: Apache-2.0
"""The plot of a report: labels that can be read, families, bars, and short names."""

import io
import itertools
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import mmpetl  # noqa: F401  (registers the methods)
from mmpetl.recipes import recipes
from mmpetl.registry import METHODS
from mmpetl.sweeps.families import FAMILIES, ORDER, family_of
from mmpetl.sweeps.report import Cell, Row
from mmpetl.sweeps.report_plots import COLOURS, MARKERS, _draw, panels_of, place_labels, plot
from mmpetl.sweeps.short_names import short_names

SUITE = str(Path(__file__).parents[2] / 'configs/small_suite/suite.json')


def a_row(name, score=60., family='adapters', seeds=3, **more):
    scores = [score + 2 * i for i in range(seeds)]
    cell = Cell(scores, scores, 3, by_run={f'seed={i}': s for i, s in enumerate(scores)},
                **{'params': 1000, 'head_params': 10, 'run_seconds': 60., **more})
    return Row(name, SUITE, {'digits': cell}, family=family, computed_bytes=2**30)


def test_labels_cover_neither_each_other_nor_points():
    figure = Figure(figsize=(5, 5), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    points = [(10 + 0.01 * (i % 3), 50 + 0.3 * i) for i in range(24)]  # a dense column
    axes.scatter(*zip(*points))
    notes = place_labels(axes, points, [f'method number {i}' for i in range(24)])
    figure.canvas.draw()
    boxes = [note.get_window_extent() for note in notes]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    here = axes.transData.transform(points)
    assert not any(box.contains(*at) for box in boxes for at in here)
    assert all(axes.get_window_extent().contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_real_config_names_become_short_and_stay_different():
    names = [path.stem for path in recipes().values() if path.parent.name == 'peers']
    short = short_names(names)
    assert len(set(short.values())) == len(names) > 15 and max(map(len, short.values())) <= 28
    assert short['adaptformer_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab'] == 'adaptformer'
    assert short['lora_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab'] != short[
        'lora_beitv2-base-p16_in21k-in1k-pre_1xb64-coslr-100e_vtab']
    assert list(short_names(['a_mae_x', 'a_in21k_x']).values()) == ['a mae', 'a in21k']
    assert list(short_names(['a_b_c', 'a_c_b']).values()) == ['a #1', 'a #2'] and short_names(['lora_x']) == {'lora_x': 'lora'}


def test_every_method_has_a_family():
    METHODS.import_from_location()
    assert {name for members in FAMILIES.values() for name in members} >= set(METHODS.module_dict)
    assert len(COLOURS) == len(MARKERS) == len(ORDER)
    for petl, tune, family in (([dict(type='LoRA')], [], 'weight updates'), ([dict(type='mmpetl.VPT')], [], 'prompts'),
                               ([dict(type='LoRA'), dict(type='VPT')], [], 'several families'), ([], ['*bias'], 'base parameters'),
                               ([], [], 'head only'), ([dict(type='Theirs')], [], 'other methods')):
        assert family_of(dict(model=dict(backbone=dict(petl=petl, tune=tune)))) == family


def test_panels_hold_what_is_known_and_bars_are_those_over_seeds(tmp_path):
    rows = [a_row('lora_x', 60.), a_row('vpt_x', 50., 'prompts'), a_row('apt_x', seeds=2)]
    panels = dict(panels_of(rows))
    assert list(panels) == ['trainable parameters, head included', 'training memory, GiB (computed)', 'time of a run, s (mean)']
    assert [(p.label, p.family, p.cost, p.score, p.spread) for p in panels['time of a run, s (mean)']] == [
        ('lora', 'adapters', 60., 62., 2.), ('vpt', 'prompts', 60., 52., 2.)]  # the third lacks a seed
    measured = [a_row(name, run_cpu_seconds=9.) for name in ('a', 'b')]
    assert [p.cost for p in dict(panels_of(measured))['processor time of a run, s (mean)']] == [9., 9.]


@pytest.mark.parametrize('kind', ['png', 'svg'])
def test_plot_with_hostile_names(kind):
    file = io.BytesIO()
    plot([a_row('$\\frac{'), a_row('<script>\x1b[31m'), a_row('lora_$x_y', seeds=1)], file, kind)
    file.seek(0)
    if kind == 'png':
        assert Image.open(file).size[0] > 1500
    else:
        assert b'<script' not in file.getvalue()


def test_no_axis_goes_beyond_what_a_score_can_be():
    axes = Figure().subplots()
    _draw(axes, 'cost', panels_of([a_row('lora', 96.), a_row('vpt', 97.5, seeds=2)])[0][1])
    assert axes.get_ylim()[1] == 100
    axes = Figure().subplots()
    _draw(axes, 'cost', panels_of([a_row('lora', 0.), a_row('vpt', 1.)])[0][1])
    assert axes.get_ylim()[0] == 0


def test_nothing_to_draw():
    file = io.BytesIO()
    plot([a_row('lora', seeds=0)], file)
    assert Image.open(file).size[1] > 300


