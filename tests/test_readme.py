# SPDX-License-Identifier: Apache-2.0
"""The README says what the tests run."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _tool():
    spec = importlib.util.spec_from_file_location('support_table', ROOT / 'tools' / 'support_table.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_text_goes_between_marks_or_is_refused():
    between = _tool().between
    assert between('a <1> old <2> b', '<1>', '<2>', 'new') == 'a <1>\nnew\n<2> b'
    for page in ('a <1> b', 'a <2> b', 'a <2> <1> b', ''):
        with pytest.raises(ValueError, match='has not the marks'):
            between(page, '<1>', '<2>', 'new')


def test_support_table_is_current():
    readme = (ROOT / 'docs' / 'methods' / 'README.md').read_text(encoding='utf-8')
    assert _tool().updated(readme) == readme, 'run python tools/support_table.py --write'


def test_readme_is_short_and_its_links_lead_somewhere():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert len(readme.split()) <= 600
    for page in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]:
        for link in re.findall(r'\]\(([^)#\s]+)[^)]*\)', page.read_text(encoding='utf-8')):
            if '://' not in link:
                assert (page.parent / link).exists(), f'{page.relative_to(ROOT)}: {link}'


def test_number_of_methods_in_the_readme():
    import mmpetl.methods  # noqa: F401
    from mmpetl.registry import METHODS
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert f'adds {len(METHODS.module_dict)} [methods]' in readme


def test_every_method_has_a_card():
    from cases import METHODS
    cards = {path.stem for path in (ROOT / 'docs' / 'methods').glob('*.md')} - {'README'}
    types = {cfg['type'].lower() for case in METHODS for cfg in case.petl}
    assert types <= cards, f'no card in docs/methods for {sorted(types - cards)}'


def test_files_that_the_readme_names_exist():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    for name in ('tools/quickstart.sh', 'tools/run_tests.sh', 'tools/train.py', 'tools/test.py', 'tools/dist_train.sh',
                 'CONTRIBUTING.md', 'configs/quickstart/lora.py', 'requirements/constraints.txt'):
        assert name in readme and (ROOT / name).exists(), name


PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]


def commands(page):
    """Command lines of the code blocks of a page, fenced or indented, comments cut off."""
    text = page.read_text(encoding='utf-8')
    blocks = re.findall(r'```(?:bash|shell|console)?\n(.*?)```', text, re.S)
    blocks.append('\n'.join(line[4:] for line in text.splitlines() if line.startswith('    ')))
    for line in '\n'.join(blocks).replace('\\\n', ' ').splitlines():
        words = shlex.split(line.strip().removeprefix('$ '), comments=True) if '```' not in line and "'" not in re.sub(
            r"'[^']*'", '', line) else []
        if words and (words[0] == 'mmpetl' or words[:1] in (['python'], ['bash']) and len(words) > 1
                      and words[1].startswith(('tools/', 'benchmarks/', 'tests/'))):
            yield words


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_printed_commands_are_understood(page):
    """Every command that a page prints has a parser that takes it; scripts and configs that it names are there."""
    from mmpetl.commands.main import build_parser
    from mmpetl.training.flags import test_parser, train_parser
    for words in commands(page):
        for word in words:
            if word.startswith(('configs/', 'tools/', 'benchmarks/')):
                assert (ROOT / word).exists(), f'{page.name}: {" ".join(words)}: there is no {word}'
        if words[0] == 'mmpetl':
            build_parser(words[1]).parse_args(words[1:])
        elif words[1] == 'tools/train.py':
            train_parser().parse_args(words[2:])
        elif words[1] == 'tools/test.py':
            test_parser().parse_args(words[2:])
        elif words[1] == 'tools/dist_train.sh':
            train_parser().parse_args([words[2], *words[4:]])


def test_pages_print_commands():
    assert sum(1 for page in PAGES for _ in commands(page)) >= 40
