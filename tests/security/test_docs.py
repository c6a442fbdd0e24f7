# SPDX-License-Identifier: Apache-2.0
"""docs/security.md names a test for each promise: it must be there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs/security.md').read_text(encoding='utf-8')


def test_every_promise_has_a_test():
    rows = [line for line in PAGE.splitlines() if line.startswith('| ')][1:]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r'`(tests/[\w/]+\.py)::(\w+)`', row)
        assert named, f'a promise without a test: {row}'
        for file, name in named:
            tree = ast.parse((ROOT / file).read_text(encoding='utf-8'))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f'{file}::{name}'


def test_how_to_report_is_found():
    assert '../SECURITY.md' in PAGE and 'docs/security.md' in (ROOT / 'SECURITY.md').read_text(encoding='utf-8')
    assert 'docs/security.md' in (ROOT / 'README.md').read_text(encoding='utf-8')
