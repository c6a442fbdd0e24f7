"""The README says what the tests run."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _tool():
    spec = importlib.util.spec_from_file_location('support_table', ROOT / 'tools' / 'support_table.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_support_table_is_current():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert _tool().updated(readme) == readme, 'run python tools/support_table.py --write'


def test_every_method_has_a_card():
    from cases import METHODS
    cards = {path.stem for path in (ROOT / 'docs' / 'methods').glob('*.md')}
    types = {cfg['type'].lower() for case in METHODS for cfg in case.petl}
    assert types <= cards, f'no card in docs/methods for {sorted(types - cards)}'


def test_files_that_the_readme_names_exist():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    for name in ('tools/quickstart.sh', 'tools/run_tests.sh', 'tools/train.py', 'tools/test.py', 'tools/dist_train.sh',
                 'CONTRIBUTING.md', 'configs/quickstart/lora.py', 'requirements/constraints.txt'):
        assert name in readme and (ROOT / name).exists(), name
