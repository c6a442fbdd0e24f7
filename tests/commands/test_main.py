# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: quick to start, examples that parse, names of configs, completion, several processes."""

import os
import pty
import re
import resource
import select
import shlex
import shutil
import subprocess
import sys
import time

import pytest
import toy_run

from mmpetl.commands import train
from mmpetl.commands.arguments import convert, data
from mmpetl.commands.main import COMMANDS, available, build_parser, main
from mmpetl.datasets.collect import KINDS
from mmpetl.datasets.tables import SUITES
from mmpetl.datasets.tables.video import VIDEO_SETS
from mmpetl.datasets.video_files.opening import MODULES
from mmpetl.recipes import find_config, folder, recipes
from mmpetl.weights import archs


@pytest.mark.parametrize('words', [['config', 'show', 'nowhere'], ['data', 'make', 'nowhere'], ['plan', 'nowhere']])
def test_debug_shows_tracebacks_of_actions_too(words, capsys):
    assert main(words) == 1 and 'Traceback' not in capsys.readouterr().err
    with pytest.raises(OSError):
        main([*words, '--debug'])


@pytest.mark.parametrize('name', available())
def test_every_help_has_examples_that_parse(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, '--help'])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert 'examples:' in text and COMMANDS[name].examples
    parser = build_parser(name)
    for line in COMMANDS[name].examples:
        assert line in text
        program, *words = shlex.split(line.split(' > ')[0])
        assert program == 'mmpetl' and words[0] == name
        args = parser.parse_args(words)
        assert callable(args.run)
        for config in [getattr(args, 'config', None), *(getattr(args, 'configs', None) or [])]:
            assert config in (None, '', 'my_config.py') or find_config(config)


def _seconds(*words: str) -> float:
    """Processor time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize('words', [['--version'], ['--help'], ['config', 'list', '--names']], ids=' '.join)
def test_it_starts_at_once(words):
    plain = min(_seconds('-c', 'pass') for _ in range(3))
    assert min(_seconds('-m', 'mmpetl', *words) for _ in range(3)) <= plain + 0.3


def test_help_and_wrong_words_import_no_library():
    """In one process: the arguments of every command, and commands that end at once."""
    script = """
import sys
from mmpetl.commands.main import build_parser, main
build_parser('*')
for words in ('train nowhere', 'plan nowhere', 'sweep nowhere --suite vtab', 'report nowhere', 'train', 'data make',
              'train x.py --set model', 'merge a b', 'test nowhere', 'convert a.pth b.pth --config nowhere',
              'inspect a.pth --config nowhere', 'export nowhere a -o b.pth'):
    try:
        assert main(words.split())
    except SystemExit as stop:
        assert stop.code == 2
print(*{name.split('.')[0] for name in sys.modules}, len(sys.modules))
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    *found, count = done.stdout.split()
    assert 'mmengine' in found and int(count) < 700, count
    libraries = {'torch', 'mmcv', 'mmpretrain', 'mmaction', 'timm', 'transformers', 'scipy', 'matplotlib', 'sklearn', 'cv2'}
    assert not libraries & {*found}
    assert len(done.stderr.splitlines()) > 12 and 'Traceback' not in done.stderr


def test_the_names_that_help_shows_are_those_of_the_tables():
    assert data.SETS == (*SUITES, *VIDEO_SETS) and data.KINDS == (*KINDS, ) and data.DECODERS == (*MODULES, )
    assert convert.ARCHS == (*sorted(archs.ARCHS), ) and convert.FORMATS == (*archs.FORMATS, )
    assert convert.ALIASES == archs.ALIASES
    parsers = next(action for action in build_parser('sweep')._actions if action.choices).choices
    assert f'{", ".join(SUITES)}, or the .json' in ' '.join(parsers['sweep'].format_help().split())


def test_a_wrong_word(capsys):
    assert main(['trian']) == 2
    assert capsys.readouterr().err == "error: mmpetl has no command 'trian'; did you mean 'train'?\n"


def test_a_reader_who_stops_early():
    command = f'{shlex.quote(sys.executable)} -m mmpetl.commands.main config list | head -n 1'
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
    assert done.stdout.count('\n') == 1 and done.stderr == ''


# -- configs by name --------------------------------------------------------------------------------------------------


def test_names_of_configs():
    known = recipes()
    files = [p for p in folder().rglob('*.py') if '_base_' not in p.parts]
    assert sorted(known.values()) == sorted(files)
    assert known['quickstart/lora'].name == 'lora.py' and 'lora' not in known
    assert find_config('quickstart/lora_adaptformer') == find_config('lora_adaptformer')
    assert find_config('quickstart/lora') == str(known['quickstart/lora'])
    assert find_config(str(known['quickstart/lora'])) == str(known['quickstart/lora'])


@pytest.mark.parametrize('name, message', [
    ('lora', "did you mean 'quickstart/lora' or 'small_suite/lora'"),
    ('quickstart/lorra', "did you mean 'quickstart/lora'"),
    ('zzzz', '`mmpetl config list` names them'),
    ('nowhere/x.py', 'there is no folder nowhere'),
])
def test_unknown_names(name, message):
    with pytest.raises(FileNotFoundError, match=message.replace('?', r'\?')):
        find_config(name)


def test_config_list_and_show(capsys):
    assert main(['config', 'list', 'apt/', 'hmdb51', '--names']) == 0
    names = capsys.readouterr().out.split()
    assert names and all(recipes()[n].parent.name == 'apt' and 'hmdb51' in n for n in names)
    assert main(['config', 'show', 'quickstart/lora', '--set', 'model.head.num_classes=7']) == 0
    text = ' '.join(capsys.readouterr().out.split())
    assert 'num_classes=7' in text and "rank=8, type='LoRA'" in text and 'default_hooks' in text
    assert main(['config', 'list', 'nothing-like-this']) == 1
    assert 'no shipped config has all of nothing-like-this' in capsys.readouterr().err


# -- completion -------------------------------------------------------------------------------------------------------


def test_completion_in_bash(tmp_path, capsys):
    assert main(['completion', 'bash']) == 0
    script = tmp_path / 'mmpetl.bash'
    script.write_text(capsys.readouterr().out)
    ask = """
source {script}
complete -p mmpetl >/dev/null
_ask() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_mmpetl; echo "${{COMPREPLY[*]}}"; }}
_ask mmpetl tr
_ask mmpetl train --wo
_ask mmpetl train quickstart/lo
"""
    done = subprocess.run(['bash', '-c', ask.format(script=script)], capture_output=True, text=True, check=True)
    commands, options, configs = done.stdout.splitlines()
    assert commands == 'train' and options == '--work-dir'
    assert configs.split() == ['quickstart/lora']


def script_of(shell, tmp_path, capsys):
    assert main(['completion', shell]) == 0
    script = tmp_path / f'mmpetl.{shell}'
    script.write_text(capsys.readouterr().out)
    return script


@pytest.mark.skipif(not shutil.which('fish'), reason='there is no fish here')
def test_completion_in_fish(tmp_path, capsys):
    script = script_of('fish', tmp_path, capsys)

    def ask(line):
        done = subprocess.run(['fish', '--no-config', '-c', f'source {script}; complete -C "{line}"'], cwd=tmp_path,
                              capture_output=True, text=True, check=True, env=dict(os.environ, HOME=str(tmp_path)))
        return [answer.split('\t')[0] for answer in done.stdout.splitlines()]

    assert ask('mmpetl tr') == ['train'] and ask('mmpetl train --wo') == ['--work-dir']
    assert ask('mmpetl train quickstart/lo') == ['quickstart/lora']
    (tmp_path / 'mine.py').touch()
    assert ask('mmpetl train min') == ['mine.py']


@pytest.mark.skipif(not shutil.which('zsh'), reason='there is no zsh here')
def test_completion_in_zsh(tmp_path, capsys):
    """Typed at a prompt, in a terminal."""
    folder = tmp_path / 'zfunc'
    folder.mkdir()
    script_of('zsh', tmp_path, capsys).rename(folder / '_mmpetl')
    (tmp_path / '.zshrc').write_text(f'fpath=({folder} $fpath); autoload -Uz compinit; compinit -u; PS1=READY\nsetopt no_beep\n')
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(['zsh', '-i'], stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path,
                             env=dict(os.environ, ZDOTDIR=str(tmp_path), TERM='dumb', HOME=str(tmp_path)))
    os.close(theirs)
    seen = b''

    def until(pattern):
        nonlocal seen
        end = time.monotonic() + 60
        while not re.search(pattern, seen):
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 65536)
        seen = b''

    try:
        until(b'READY')
        for typed, wanted in ((b'mmpetl tr\t', b'mmpetl train'), (b'--wo\t', b'--work-dir'),
                              (b'x quickstart/lo\t', b'quickstart/lora')):
            os.write(ours, typed)
            until(wanted)
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)


# -- several processes ------------------------------------------------------------------------------------------------


def test_several_processes_get_the_same_words(monkeypatch):
    seen = []
    monkeypatch.setattr(subprocess, 'call', lambda command: seen.append(command) or 0)
    assert train.several(2, ['train', 'a.py', '--gpus', '2', '--set', 'x=1']) == 0
    assert train.several(3, ['train', '--gpus=3', 'a.py']) == 0
    assert seen[0][-6:] == ['mmpetl.commands.train', 'a.py', '--set', 'x=1', '--launcher', 'pytorch']
    assert seen[1][-4:] == ['mmpetl.commands.train', 'a.py', '--launcher', 'pytorch']
    assert main(['train', 'a.py', '--gpus', '0']) == 1


def test_train_and_test_by_command(tmp_path, monkeypatch):
    """One process trains, started as those of several are, two test; the run is that of tools/train.py."""
    monkeypatch.chdir(tmp_path)
    toy_run.write(tmp_path, "log_level = 'INFO'\ncustom_hooks = [dict(type='mmpetl.AdapterHook', full_checkpoints=True)]\n"
                  "model['backbone'].update(type='mmpetl.VisionTransformer', petl=[dict(type='LoRA', rank=2)])\n")
    run = [sys.executable, '-m', 'mmpetl.commands.main']
    env = dict(os.environ, PYTHONPATH=str(toy_run.ROOT), OMP_NUM_THREADS='1')
    done = subprocess.run([*run[:2], 'mmpetl.commands.train', 'toy.py', '--set', 'train_cfg.max_epochs=1'],
                          capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert '\nnext      mmpetl test work_dirs/toy/toy.py work_dirs/toy/adapter.safetensors\n' in done.stdout
    done = subprocess.run([*run, 'test', 'toy.py', 'work_dirs/toy/epoch_1.pth', '--gpus', '2', '--out', 'scores.json',
                           '--out-item', 'metrics'], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'accuracy' in (tmp_path / 'scores.json').read_text()
