# SPDX-License-Identifier: Apache-2.0
"""Every message about data or weights that are not there is one line and names the command that gets them."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmpetl.commands.data_check import check_suite, check_task
from mmpetl.commands.fetch import GROUPS
from mmpetl.commands.video_check import check_video_dataset
from mmpetl.compat import load_from_local
from mmpetl.datasets import video_prepare, vtab_records
from mmpetl.datasets.downloads import DATA
from mmpetl.datasets.folders import subfolders
from mmpetl.datasets.how_to_get import MADE, how_to_get
from mmpetl.datasets.list_dataset import ListDataset
from mmpetl.datasets.loading import LoadImage
from mmpetl.datasets.prepare import RECIPES
from mmpetl.datasets.survey import survey_pictures, survey_videos
from mmpetl.datasets.tables import SUITES
from mmpetl.datasets.tables.video import VIDEO_SETS
from mmpetl.datasets.video_files.errors import VideoError
from mmpetl.datasets.video_io import VideoInit
from mmpetl.datasets.video_lists import read_video_list
from mmpetl.datasets.vtab_records import source_folder
from mmpetl.names import command_here
from mmpetl.registry import DATASETS
from mmpetl.weights.bases import BASES
from mmpetl.weights.convert_file import read_source

ROOT = Path(__file__).parents[2]
TASKS = [(suite.name, task) for suite in SUITES.values() for task in suite.tasks]
KNOWN = {*DATA, *GROUPS, *RECIPES, *BASES}


@pytest.fixture(autouse=True)
def nothing_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names(text, name, root=''):
    """Whether a message is one line that names ``mmpetl fetch NAME``, with the folder where it is not the usual one."""
    found = re.search(r"'mmpetl fetch (\S+?)(?: --root (\S+?))?' (gets it|prints the steps)", text)
    assert found and '\n' not in text, text
    assert found[1] == name and found[1] in KNOWN and (found[2] or '') == str(root), text


def name_of(suite, task):
    return suite if suite == 'vtab' else f'{suite}/{task}'


@pytest.mark.parametrize('suite, task', TASKS, ids=lambda x: x)
def test_a_task_of_a_suite(suite, task, tmp_path):
    spec, name = SUITES[suite], name_of(suite, task)
    item = spec.tasks[task]
    for split in item.splits:
        for root in ('', 'elsewhere/my data'):
            with pytest.raises(FileNotFoundError) as caught:
                DATASETS.build(dict(type=spec.dataset, task=task, split=split, data_root=root))
            text = str(caught.value)
            names(text.replace("'elsewhere/my data'", 'elsewhere'), name, root and 'elsewhere')
    picture = f'{item.locate(spec.root)}/{item.images}/a.png'.replace('//', '/')
    with pytest.raises(FileNotFoundError) as caught:
        LoadImage().transform(dict(img_path=picture))
    names(str(caught.value), name)
    names(check_task(item, spec.root).problems[0], name)
    Path(item.locate(spec.root)).mkdir(parents=True)
    for problem in check_task(item, spec.root).problems:
        names(problem, name)


@pytest.mark.parametrize('suite', SUITES)
def test_a_whole_suite(suite):
    with pytest.raises(FileNotFoundError) as caught:
        check_suite(suite)
    names(str(caught.value), suite)


@pytest.mark.parametrize('name', VIDEO_SETS)
def test_a_video_data_set(name, tmp_path, capsys):
    usual, other = f'data/{name}', tmp_path / 'videos'
    for path in (f'{usual}/split1/train.csv', f'{usual}/test.csv'):
        with pytest.raises(FileNotFoundError) as caught:
            read_video_list(path)
        names(str(caught.value), name)
    with pytest.raises(VideoError) as caught:
        VideoInit().transform(dict(filename=f'{usual}/a/b.avi'))
    names(str(caught.value), name)
    assert all("'mmpetl fetch " in line for line in survey_videos([f'{usual}/a.avi'], 'exists').unreadable())
    for root in (usual, other):
        with pytest.raises(FileNotFoundError) as caught:
            check_video_dataset(name, root)
        names(str(caught.value), name, '' if root == usual else root)
        assert video_prepare.main(name, '', [str(root)]) == 1
        names(capsys.readouterr().err.strip(), name, '' if root == usual else root)


@pytest.mark.parametrize('folder', MADE)
def test_data_that_the_project_makes(folder, tmp_path):
    command = f"'{command_here(MADE[folder])}' gets it"  # with the path of a script that is there
    place = tmp_path / folder
    with pytest.raises(FileNotFoundError, match=re.escape(command)):
        ListDataset('train.txt', str(place), pipeline=[])
    with pytest.raises(FileNotFoundError, match=re.escape(command)):
        subfolders(str(place))
    assert command in survey_pictures([f'{place}/a.png']).unreadable()[0]
    place.mkdir()
    with pytest.raises(FileNotFoundError, match=re.escape(command)):
        ListDataset('train.txt', str(place), pipeline=[])
    (place / 'train.txt').write_text('a.png 0\n')
    with pytest.raises(FileNotFoundError, match=re.escape(command)):
        ListDataset('train.txt', str(place), pipeline=[])
    words = MADE[folder].split()
    assert (ROOT / words[1]).is_file() if words[0] == 'python' else words[2] in KNOWN


def test_records_of_tensorflow_datasets():
    with pytest.raises(FileNotFoundError) as caught:
        source_folder(SUITES['vtab'].tasks['cifar'], 'tfds')
    names(str(caught.value), 'vtab')


@pytest.mark.parametrize('name', BASES)
def test_a_base(name, tmp_path):
    path = str(tmp_path / BASES[name].file)
    for read in (load_from_local, read_source):
        with pytest.raises(FileNotFoundError) as caught:
            read(path)
        assert str(caught.value) == f"{path} is missing: 'mmpetl fetch {name}' gets it"


def roots(node):
    if isinstance(node, dict):
        if isinstance(node.get('data_root'), str):
            yield node['data_root']
        for value in node.values():
            yield from roots(value)


@pytest.mark.parametrize('path', sorted((ROOT / 'configs/_base_/datasets').glob('*.py')), ids=lambda p: p.stem)
def test_the_folders_of_the_recipes(path):
    """The data of every recipe can be had by a command; only a user's own cannot."""
    found = set(roots(Config.fromfile(str(path)).to_dict()))
    for root in found - {'data/own'}:
        assert re.match(r"'(mmpetl fetch|python \S*tools/)", how_to_get(root)), root
    assert how_to_get('/home/me/pictures/train.txt') == ''


#: What each tool of tools/prepare_*.py that takes folders calls them.
FOLDERS = {'vtab': ['root', '--out'], **{name: ['root', '--videos', '--lists', '--out', '--encoded'] for name in VIDEO_SETS}}


@pytest.mark.parametrize('name, option', [(name, option) for name, options in FOLDERS.items() for option in options])
def test_a_file_is_no_folder_of_the_tools(name, option, tmp_path, capsys):
    (tmp_path / 'a.txt').write_text('')
    run = vtab_records.main if name == 'vtab' else lambda doc, words: video_prepare.main(name, doc, words)
    for given, said in (('a.txt', 'is a file'), ('a.txt/x', "a.txt', which is a file")):
        with pytest.raises(SystemExit):
            run('', [*([] if option == 'root' else [option]), str(tmp_path / given)])
        error = capsys.readouterr().err.splitlines()[-1]
        assert f'argument {option}: ' in error and said in error and error.endswith('name a folder')


def test_all_tools_that_prepare_are_looked_at():
    tools = {path.stem.removeprefix('prepare_') for path in (Path(__file__).parents[2] / 'tools').glob('prepare_*.py')}
    assert tools == {*FOLDERS, 'scenes', 'motion_clips'}  # these two take no folder, but the cache
