# SPDX-License-Identifier: Apache-2.0
"""The types of the package, as `make types` checks them."""

import ast
import subprocess
import sys
from pathlib import Path

import mmpetl

ROOT = Path(mmpetl.__file__).parent
USER = """
import mmpetl

reveal_type(mmpetl.attach)
reveal_type(mmpetl.AdapterBank)
reveal_type(mmpetl.__version__)
with mmpetl.disabled(mmpetl.attach(None, [dict(type='LoRA')])) as model:
    print(mmpetl.merge(model, verify=True))
mmpetl.attach(None, petl=3)
mmpetl.atach
"""


def test_types(tmp_path):
    done = subprocess.run([sys.executable, '-m', 'mypy', '--cache-dir', str(tmp_path)], cwd=Path(__file__).parents[1],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_what_a_users_editor_knows(tmp_path):
    """The names that are imported lazily have their types in a file of the user's."""
    (tmp_path / 'mine.py').write_text(USER)
    (tmp_path / 'mypy.ini').write_text('[mypy]\nfollow_imports = silent\nignore_missing_imports = True\n'
                                       '[mypy-torch.*,mm*,numpy.*]\nfollow_imports = skip\n')
    done = subprocess.run([sys.executable, '-m', 'mypy', '--cache-dir', str(tmp_path), 'mine.py'], cwd=tmp_path,
                          capture_output=True, text=True, env={'MYPYPATH': str(ROOT.parent), 'PATH': ''})
    said = done.stdout
    assert 'mine.py:4: note: Revealed type is "def (model: Any, petl:' in said and 'memory: ' in said, said + done.stderr
    assert 'AdapterBank' in said and 'mine.py:6: note: Revealed type is "' in said
    wrong = [line for line in said.splitlines() if ': error: ' in line]
    assert len(wrong) == 2 and '"attach" has incompatible type "int"' in wrong[0], said
    assert 'Module has no attribute "atach"' in wrong[1]


def test_the_stub_names_the_api():
    tree = ast.parse((ROOT / '__init__.pyi').read_text())
    names = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == set(mmpetl.__all__) == set(dir(mmpetl)) and (ROOT / 'py.typed').exists()
    for name in names:
        assert getattr(mmpetl, name) is not None
