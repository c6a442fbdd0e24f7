# SPDX-License-Identifier: Apache-2.0
"""Every function that reads a file, on every kind of hostile file: nothing runs, nothing is written outside, memory
stays small, and one line that names the file says what is wrong."""

import ast
import contextlib
import copy
import cProfile
import io
import json
import os
import signal
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import BACKBONE
from hostile import KINDS, STRANGE
from scan_readers import CALLS, OWNED, ROOT, functions_of, read_calls, readers
from toy_model import CONFIG  # noqa: F401  (the toy models' module prepares their imports)

import mmpetl
from mmpetl import compat
from mmpetl.adapters import facts, peft_folder
from mmpetl.backbones.foreign_build import build_timm
from mmpetl.clean_errors import one_line
from mmpetl.commands import data_check
from mmpetl.commands import fetch as fetch_command
from mmpetl.commands.inspect import describe, inspect_file
from mmpetl.datasets import (
    Elevater,
    VTAB1k,
    arrays,
    fetch,
    k400,
    list_files,
    lists,
    masks,
    motion_clips,
    prepare,
    scenes,
    small_tasks,
    survey,
    tfrecord,
    video_prepare,
    video_probe,
)
from mmpetl.datasets.downloads import unpack
from mmpetl.datasets.loading import LoadImage, read_bytes
from mmpetl.datasets.sources import SOURCES
from mmpetl.datasets.tables import SUITES, get_suite
from mmpetl.datasets.video_files import cache, probing, pyav_reader
from mmpetl.datasets.video_io import VideoInit
from mmpetl.datasets.video_lists import read_video_list
from mmpetl.features.hook import _marker
from mmpetl.features.store import FeatureStore
from mmpetl.hooks import data_guard, schedule
from mmpetl.hooks.schedule import ScheduleHook
from mmpetl.models import text_prompts
from mmpetl.models.text_features import load_text_features
from mmpetl.names import printable
from mmpetl.pruning.state import load_state, restore
from mmpetl.sweeps.claims import Claim
from mmpetl.sweeps.plan import read_plan
from mmpetl.sweeps.report_pages import texts_of
from mmpetl.sweeps.run_facts import read_curves
from mmpetl.sweeps.submission import entry_of
from mmpetl.sweeps.trial import OK, Result, read_history, read_result
from mmpetl.training import work_dir
from mmpetl.training.build import load_trained
from mmpetl.weights import adapter_file, hub, load_file
from mmpetl.weights.convert_file import read_source
from mmpetl.weights.download import digest_of
from mmpetl.weights.reading import read_bytes as regular_bytes

MEMORY, SECONDS = 200 << 20, 20
sys.path.insert(0, str(ROOT / 'tools'))


def own_suite(folder, form, **task):
    path = folder / 'own.json'
    path.write_text(json.dumps(dict(form=form, tasks=dict(a=dict(num_classes=2, **task)))))
    return str(path)


@contextlib.contextmanager
def pinned(name, path):
    """The file as the archive of a source, with its own digest."""
    before = SOURCES[name]
    sha256 = fetch.sha256_of(path) if path.is_file() else '0' * 64
    SOURCES[name] = replace(before, archive=path.name, sha256=sha256, member_sha256='', members='*')
    try:
        yield SOURCES[name]
    finally:
        SOURCES[name] = before


def unit_of(folder):
    trial = types.SimpleNamespace()
    return types.SimpleNamespace(plan=dict(suite='elevater', cfg_options={}, config=''), task='mnist', fold={},
                                 finals=lambda: [trial], result=lambda t: Result(OK, 1., 1.), folder=lambda t: str(folder))


def from_archive(path, run, name='quickdraw'):
    with pinned(name, path) as source:
        return run(source)


class Listed:
    """A data set of one sample that names its list."""

    def __init__(self, ann_file):
        self.ann_file = ann_file

    def __len__(self):
        return 1


def schedule_in(path):
    hook, text = ScheduleHook(), regular_bytes(path).decode(errors='replace')
    runner = types.SimpleNamespace(_resume=True, cfg={}, optim_wrapper=None, param_schedulers=None, train_dataloader=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, 'schedule_of', lambda runner: {})
        hook.after_load_checkpoint(runner, {schedule.SCHEDULE: text})
        hook._before = {}
        hook.before_train(runner)


def after_name(path, run):
    """For readers whose message is put after the name of the file by those who call them."""
    try:
        return run(path)
    except ValueError as error:
        raise ValueError(f'{path} {error}') from None


def with_tool(name, run):
    module = __import__(name)
    return run(module)


def hot_swap(path, models):
    bank = copy.deepcopy(models['bank'])
    return bank.hot_swap('x', str(path))


def serve(path, models):
    bank = mmpetl.AdapterBank(copy.deepcopy(models['plain']))
    bank.serve({'y': str(path)})
    return bank['y']


#: Row -> (name that the file gets, what reads it). ``models`` are built once.
ROWS = {
    'load_file': ('w.pth', lambda p, m: load_file(p)),
    'load_file .npz': ('w.npz', lambda p, m: load_file(p)),
    'load_from_local': ('w.pth', lambda p, m: compat.load_from_local(str(p))),
    'adapter_file.load': ('a.safetensors', lambda p, m: adapter_file.load(p)),
    'adapter_file.read_header': ('a.safetensors', lambda p, m: adapter_file.read_header(p)),
    'load_adapter': ('a.safetensors', lambda p, m: mmpetl.load_adapter(copy.deepcopy(m['plain']), str(p))),
    'AdapterBank.add_file': ('a.safetensors', lambda p, m: copy.deepcopy(m['bank']).add_file('y', str(p))),
    'AdapterBank.serve': ('a.safetensors', serve),
    'AdapterBank.hot_swap': ('a.safetensors', hot_swap),
    'config of peft': (peft_folder.CONFIG, lambda p, m: peft_folder.read_folder(str(p.parent))),
    'tensors of peft': (peft_folder.TENSORS, lambda p, m: peft_folder._tensors(str(p))),
    'pickled tensors of peft': (peft_folder.PICKLED, lambda p, m: peft_folder._tensors(str(p))),
    'is_adapter': ('w.pth', lambda p, m: adapter_file.is_adapter(str(p))),
    'base of timm': ('w.pth', lambda p, m: build_timm('vit_tiny_patch16_224', checkpoint_path=str(p), depth=1)),
    'load_trained': ('w.pth', lambda p, m: load_trained(copy.deepcopy(m['bank'].model), str(p))),
    'inspect': ('w.pth', lambda p, m: describe(inspect_file(str(p)))),
    'read_source': ('w.onnx', lambda p, m: read_source(p)),
    'read_rows': ('l.txt', lambda p, m: list_files.read_rows(str(p))),
    'read_names': ('l.txt', lambda p, m: list_files.read_names(str(p))),
    'read_video_list': ('l.csv', lambda p, m: read_video_list(str(p))),
    'lists.read_text': ('l.txt', lambda p, m: lists.read_text(str(p))),
    'read_entry_list': ('l.json', lambda p, m: lists.read_entry_list(str(p))),
    'read_mapping': ('l.json', lambda p, m: lists.read_mapping(str(p))),
    'read_coco': ('l.json', lambda p, m: lists.read_coco(str(p))),
    'suite file': ('s.json', lambda p, m: get_suite(str(p))),
    'list of a suite': ('a/test.txt', lambda p, m: VTAB1k('a', 'test', suite=own_suite(p.parents[1], 'vtab'))),
    'JSON list of a suite': ('a/test.json', lambda p, m: VTAB1k('a', 'test', suite=own_suite(p.parents[1], 'vtab'))),
    'class file of a config': ('c.txt', lambda p, m: facts._class_names(dict(classes=str(p)))),
    'class file of a suite': ('a/classes.txt', lambda p, m: VTAB1k('a', 'test', suite=own_suite(p.parents[1], 'vtab'))),
    'index of ELEVATER': ('a/test.txt', lambda p, m: Elevater('a', 'test', suite=own_suite(p.parents[1], 'elevater'))),
    'text features': ('f.npz', lambda p, m: load_text_features(str(p))),
    'pruning state': ('state.json', lambda p, m: load_state(str(p.parent))),
    'pruning snapshot': ('x.safetensors', lambda p, m: restore(m['adapted'], str(p))),
    'sweep plan': ('sweep.json', lambda p, m: read_plan(str(p.parent))),
    'trial result': ('result.json', lambda p, m: read_result(str(p.parent))),
    'trial history': ('run/1/vis_data/scalars.json', lambda p, m: read_history(str(p.parents[2]), 'x')),
    'curves of a run': ('run/1/vis_data/scalars.json', lambda p, m: read_curves(str(p.parents[2]))),
    'commands of a run': ('command.txt', lambda p, m: work_dir.read_commands(str(p.parent))),
    'texts of a page': ('config.py', lambda p, m: texts_of(str(p.parent), str(p))),
    'claim': ('claim', lambda p, m: Claim(str(p.parent)).acquire()),
    'scores': ('scores.npz', lambda p, m: entry_of('', [unit_of(p.parent)], 'x', {})),
    'members of an archive': ('x.whl', lambda p, m: from_archive(p, lambda source: [
        read() for _, read in fetch.members(source, p)])),
    'archive in the cache': ('cache/archives/x.whl', lambda p, m: from_archive(p, fetch.archive)),
    'quickdraw': ('cache/archives/x.whl', lambda p, m: from_archive(p, lambda source: arrays.quickdraw_classes())),
    'dSprites': ('cache/archives/x.whl', lambda p, m: from_archive(p, lambda source: small_tasks.dsprites_loc(),
                                                                   'dsprites')),
    'note of digests': ('.sha256.json', lambda p, m: fetch.is_intact(p.parent)),
    'note of a recipe': ('about.json', lambda p, m: prepare._is_current(p.parent, 1)),
    'prepared weights': ('w.safetensors', lambda p, m: prepare._is_whole(p)),
    'gzip data': ('x.gz', lambda p, m: arrays.unpacked(regular_bytes(p), p.name)),
    'rows of an array': ('x.npz', lambda p, m: list(small_tasks.stored_rows(p, 'imgs', [0, 1]))),
    'read_bytes': ('x.png', lambda p, m: read_bytes(str(p))),
    'zip member': ('x.zip', lambda p, m: after_name(p, lambda p: read_bytes(f'{p}@a.png'))),
    'LoadImage': ('x.png', lambda p, m: LoadImage().transform(dict(img_path=str(p)))),
    'LoadImage, OpenCV': ('x.png', lambda p, m: LoadImage(imdecode_backend='cv2').transform(dict(img_path=str(p)))),
    'LoadImage, zip member': ('x.zip', lambda p, m: LoadImage().transform(dict(img_path=f'{p}@a.png'))),
    'probe, OpenCV': ('v.avi', lambda p, m: video_probe.probe(str(p), 'decode', 'opencv')),
    'probe, PyAV': ('v.avi', lambda p, m: video_probe.probe(str(p), 'decode', 'pyav')),
    'length of a video': ('v.avi', lambda p, m: probing.cut_off(str(p))),
    'code of a codec': ('v.avi', lambda p, m: pyav_reader.four_letters(str(p))),
    'findings of videos': ('videos.txt', lambda p, m: cache.Findings(str(p.parent)).get('0' * 24)),
    'VideoInit, PyAV': ('v.avi', lambda p, m: VideoInit('pyav').transform(dict(filename=str(p)))),
    'VideoInit': ('v.avi', lambda p, m: VideoInit('decord').transform(dict(filename=str(p)))),
    'HMDB51': ('a_test_split1.txt', lambda p, m: video_prepare.hmdb51_lists(p.parent, p.parent)),
    'UCF101': ('classInd.txt', lambda p, m: video_prepare.ucf101_lists(p.parent, p.parent)),
    'SSv2': ('labels.json', lambda p, m: video_prepare.ssv2_lists(p.parent, p.parent)),
    'Kinetics': ('train.csv', lambda p, m: k400.k400_lists(p.parent, p.parent)),
    'drawings': ('train.txt', lambda p, m: motion_clips._drawings(p.parent, 'train', 1)),
    'note of clips': ('t/about.json', lambda p, m: motion_clips.prepare_clips(p.parent, p.parent, 1, 1)),
    'note of scenes': ('t/about.json', lambda p, m: scenes.prepare_scenes(p.parent, p.parent, dict(train=1))),
    'classes of scenes': ('classes.txt', lambda p, m: scenes.prepare_scenes(p.parent / 'made', p.parent, dict(train=1))),
    'prompts': ('prompts.py', lambda p, m: text_prompts.read_prompts(str(p))),
    'knowledge': ('a_knowledge.tsv', lambda p, m: text_prompts.read_knowledge(str(p.parent), 'a', ['wordnet'])),
    'prompts of the tool': ('p.json', lambda p, m: with_tool('text_features', lambda tool: tool.given_prompts(
        types.SimpleNamespace(prompts=str(p), template=None), SUITES['vtab']))),
    'classes of the tool': ('c.txt', lambda p, m: with_tool('text_features', lambda tool: tool.prompts_of(
        types.SimpleNamespace(classes=str(p), template=None)))),
    'feature table': ('features/0.bin', lambda p, m: FeatureStore(torch.ones(2, 3), 2, 2, torch.device('cpu'), 'disk',
                                                                  folder=p.parent)),
    'marker of features': ('features/complete.json', lambda p, m: _marker(p, 2)),
    'owner of a folder': ('lock', lambda p, m: work_dir._owner(regular_bytes(p).decode(errors='replace'))),
    'pointer of a run': ('last_checkpoint', lambda p, m: work_dir.newest_checkpoint(str(p.parent))),
    'checkpoint of a run': ('epoch_1.pth', lambda p, m: work_dir.newest_checkpoint(str(p.parent))),
    'schedule in a checkpoint': ('s.json', lambda p, m: after_name(p, schedule_in)),
    'line of a sample': ('l.txt', lambda p, m: data_guard._line(Listed(str(p)), 0, 0)),
    'picture of a survey': ('x.png', lambda p, m: survey._picture(str(p), None, None)),
    'video of a survey': ('v.mp4', lambda p, m: survey._digest(str(p))),
    'mask': ('x.png', lambda p, m: after_name(p, lambda p: masks._values(str(p), {}))),
    'size of a mask': ('x.png', lambda p, m: masks._size(str(p))),
    'TFRecord': ('x-train.tfrecord-00000-of-00001', lambda p, m: list(tfrecord.Records([str(p)]))),
    'digest of a download': ('x.bin', lambda p, m: digest_of(p, 'sha256')),
    'content of a download': ('x.bin', lambda p, m: after_name(p, fetch_command.check_weights)),
    'digest of a file of the hub': ('x.safetensors', lambda p, m: hub._digest(p, 40)),
    'start of a file of the hub': ('x.safetensors', lambda p, m: hub._page(p)),
    'branch in the cache of the hub': ('refs/main', lambda p, m: hub._known_commit(p.parents[1], 'main')),
    'archive of a data set': ('x.zip', lambda p, m: unpack(p, p.parent / 'target')),
    'digest of a list': ('l.txt', lambda p, m: data_check._digest(str(p))),
    'picture of a check': ('x.png', lambda p, m: data_check._look(str(p), True)),
}


PROGRAM, OWN, WRITES, ARGUMENT, CHILD, NETWORK, NETWORK_HUB, ROWED = (
    'a config is a program of its user', 'a file of the package, the system or the installation', 'reads what it wrote',
    'text of the command line', 'decodes in a process of its own', 'what arrives is checked, see test_downloads.py',
    'what arrives is checked, see test_hub.py',
    'hands the path to readers that have a row')
#: Functions without a row, and why; :func:`test_readers_without_a_row` looks at the last reason.
EXEMPT = {
    'mmpetl/adapters/push.py:push': ROWED,
    'mmpetl/commands/config.py:first_line': OWN,
    'mmpetl/commands/doctor.py:_requirement_lines': OWN,
    'mmpetl/commands/doctor.py:pin_findings': OWN,
    'mmpetl/commands/sweep.py:_literal': ARGUMENT,
    'mmpetl/commands/sweep.py:_values': ARGUMENT,
    'mmpetl/compat/placeholders.py:_lacks_drn': OWN,
    'mmpetl/compat/placeholders.py:_transformers_moved': OWN,
    'mmpetl/commands/main.py:_run.run': WRITES,
    'mmpetl/compat/loading.py:load_from_http.fetch': NETWORK,
    'mmpetl/datasets/make.py:write_lists': WRITES,
    'mmpetl/datasets/motion_clips.py:inflate': ROWED,
    'mmpetl/training/config.py:_check_checkpoint': ROWED,
    'mmpetl/datasets/video_files/cache.py:Findings.put': WRITES,
    'mmpetl/datasets/video_files/serve.py:serve': CHILD,
    'mmpetl/datasets/video_probe.py:_Worker.try_video': CHILD,
    'mmpetl/features/store.py:FeatureStore.finish': WRITES,
    'mmpetl/features/store.py:free_host_bytes': OWN,
    'mmpetl/hooks/checkpoint.py:settle': WRITES,
    'mmpetl/sweeps/claims.py:_started': OWN,
    'mmpetl/sweeps/report.py:sweep_config': PROGRAM,
    'mmpetl/sweeps/report_html.py:render': OWN,
    'mmpetl/sweeps/space.py:parse_range': ARGUMENT,
    'mmpetl/sweeps/submission.py:_sizes': PROGRAM,
    'mmpetl/sweeps/submission.py:shots_of': PROGRAM,
    'mmpetl/sweeps/trial.py:serve': ROWED,
    'mmpetl/sweeps/trial.py:trial_config': PROGRAM,
    'mmpetl/training/config.py:load_config': PROGRAM,
    'mmpetl/training/data_report.py:check_collection': ROWED,
    'mmpetl/training/lifecycle.py:name_base': ROWED,
    'mmpetl/training/given.py:ConfigOptions._parse_iterable': ARGUMENT,
    'mmpetl/training/given.py:_literal': ARGUMENT,
    'mmpetl/training/own_config.py:_reads_beside_text': OWN,
    'mmpetl/training/own_config.py:bases': OWN,
    'mmpetl/training/tasks.py:_other_base': PROGRAM,
    'mmpetl/weights/atomic.py:sync_folder': OWN,
    'mmpetl/weights/atomic.py:locked': OWN,
    'mmpetl/weights/atomic.py:started': OWN,
    'mmpetl/weights/download.py:_receive': NETWORK,
    'mmpetl/weights/hub.py:text_of': NETWORK_HUB,
    'mmpetl/weights/export_onnx.py:_exported': WRITES,
    'mmpetl/weights/export_peft.py:write_peft': WRITES,
    'tools/prepare_motion_clips.py:main': OWN,
    'tools/docs_site.py:face_page': OWN,
    'tools/docs_site.py:on_files': OWN,
    'tools/docs_site.py:public': OWN,
    'tools/model_zoo.py:main': OWN,
    'tools/model_zoo.py:read': OWN,
    'tools/model_zoo.py:recipes': OWN,
    'tools/quickstart_report.py:read_files': PROGRAM,
    'tools/support_table.py:main': OWN,
    'tools/export_table.py:main': OWN,
    'tools/text_features.py:main': ROWED,
}
#: Notes which functions are entered, while it is on.
ENTERED = cProfile.Profile(builtins=False)


@pytest.fixture(scope='module')
def problems(tmp_path_factory):
    """Kind -> what is wrong, over all rows; everything runs once, and is noted in :data:`ENTERED`."""
    plain = BACKBONE['vit'].build_upstream()
    bank = mmpetl.AdapterBank(copy.deepcopy(plain))
    bank.add('x', [dict(type='LoRA', rank=2)])
    adapted = mmpetl.attach(copy.deepcopy(plain), [dict(type='LoRA', rank=2)])
    models = dict(plain=plain, bank=bank, adapted=adapted)

    def download(source, folder, target):
        raise fetch.FetchError(f'cannot fetch {source.archive}: no network')

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, '_download', download)
        patch.setattr(Claim, '_beat', lambda *a: None)
        patch.setenv('MMPETL_CACHE', '')
        for kind in (*KINDS, *STRANGE):
            top = tmp_path_factory.mktemp('kind')
            marker = top / 'it-ran'
            content = KINDS[kind](marker) if kind in KINDS else b''
            said = []
            for number, row in enumerate(ROWS):
                folder = top / str(number)
                folder.mkdir()
                said.append(problem(row, kind, content, folder, models, marker))
            found[kind] = [text for text in said if text]
    return found


def memory(key):
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))


def reset_peak():
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')


def tree(folder):
    return sorted(str(p) for p in folder.rglob('*'))


@contextlib.contextmanager
def watched():
    """Notes which functions are entered; a reader that hangs is an error."""
    def late(*_):
        pytest.fail(f'it took more than {SECONDS} seconds')
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    ENTERED.enable()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ENTERED.disable()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def problem(row, kind, content, folder, models, marker):
    """What is wrong about one reader on one kind of file, or ''."""
    name, run = ROWS[row]
    path = folder / 'in/ner' / name
    path.parent.mkdir(parents=True)
    os.environ['MMPETL_CACHE'] = str(folder / 'in/ner/cache')
    if kind in STRANGE:
        STRANGE[kind](path)
    else:
        path.write_bytes(content)
    reset_peak()
    before, size, said = memory('VmRSS'), len(content), ''
    try:
        with watched():
            run(path, models)
    except (ValueError, OSError, fetch.FetchError) as error:
        text = one_line(error)
        if not text or '\n' in str(error) or not (path.name in text or str(folder) in text):
            said = f'its message is {text[:300]!r}'
        elif not printable(text).isprintable():
            said = 'its message has control characters'
    except Exception as error:
        said = f'{type(error).__name__}: {str(error)[:200]}'
    used = memory('VmHWM') - before - size
    if used > MEMORY:
        said += f' and {used >> 20} MB of memory'
    if marker.exists():
        said += ' and THE COMMAND RAN'
    outside = [p for p in tree(folder) if not p.startswith(str(folder / 'in/ner'))]
    if outside != [str(folder / 'in')] or os.path.exists('/escaped'):
        said += f' and wrote {outside}'
    return said and f'{row} on {kind}: {said}'


@pytest.mark.parametrize('kind', [*KINDS, *STRANGE])
def test_every_reader_on(kind, problems):
    assert not problems[kind], '\n'.join(problems[kind])


def test_there_are_enough_kinds():
    assert len(KINDS) + len(STRANGE) > 60 and len(ROWS) > 60, 'docs/security.md says so'


def entered():
    """Readers that the rows have entered, by the names of the scan."""
    found = set()
    codes = [entry.code for entry in ENTERED.getstats()]
    here = {(code.co_filename, code.co_firstlineno) for code in codes
            if code.co_filename.startswith((f'{ROOT}/mmpetl', f'{ROOT}/tools'))}
    for file in {file for file, _ in here}:
        lines = {line for f, line in here if f == file}
        for name, first in functions_of(Path(file)):
            if first in lines:
                found.add(f'{Path(file).relative_to(ROOT).as_posix()}:{name}')
    return found


def test_readers_without_a_row(problems):
    """A new reader fails here until it has a row above, or a reason."""
    every, seen = readers(), entered()
    assert sorted(every - seen - set(EXEMPT)) == [], 'readers without a row'
    assert sorted(set(EXEMPT) - every) == [], 'reasons for what no longer reads'
    assert sorted(set(EXEMPT) & seen - {'mmpetl/weights/atomic.py:locked', 'mmpetl/weights/atomic.py:started',
                                        'mmpetl/weights/atomic.py:sync_folder', 'mmpetl/sweeps/claims.py:_started',
                                        'mmpetl/features/store.py:free_host_bytes'}) == [], 'reasons for what has a row'
    names = {reader.rpartition(':')[2].rpartition('.')[2] for reader in seen}
    for reader in (r for r, reason in EXEMPT.items() if reason == ROWED):
        assert set(read_calls(reader)) <= names, f'{reader} reads by itself'


def test_the_scan_finds_readers():
    """Each way to read a file that the scan knows is found; ordinary calls and writing are not."""
    from scan_readers import reads
    for source in ('open(p)', 'p.open()', 'np.load(p)', 'zipfile.ZipFile(p)', 'Path(p).read_text()', 'json.load(f)',
                   'os.open(p, os.O_RDONLY)', 'cv2.imread(p)', 'open(p, "rb+")'):
        assert reads(ast.parse(source).body[0].value), source
    for source in ('open(p, "w")', 'zipfile.ZipFile(p, mode="w")', 'model.load(p)', 'f.write(x)', 'print(p)'):
        assert not reads(ast.parse(source).body[0].value), source
    assert len(CALLS) + len(OWNED) > 30
