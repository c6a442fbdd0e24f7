"""The README says what the tests run."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _tool():
    spec = importlib.util.spec_from_file_location('support_table', ROOT / 'tools' / 'support_table.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
