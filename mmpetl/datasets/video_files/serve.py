# SPDX-License-Identifier: Apache-2.0
"""Answer paths on the standard input by results on the standard output, in a process of its own."""

import json
import sys
from dataclasses import asdict

from .probing import probe

#: Opens every line that a checking process writes, so that what libraries print is not taken for an answer.
MARK = '\x1e'
#: Starts a process with this package alone, as importing mmpetl takes seconds: python -c START folder level decoder.
START = """
import importlib.util, sys
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location('video_files', f'{folder}/__init__.py',
                                              submodule_search_locations=[folder])
sys.modules['video_files'] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from video_files.serve import serve
serve(*sys.argv[2:])
"""


def serve(level: str, decoder: str) -> None:
    """Try every video whose path comes in."""
    print(f'{MARK}ready', flush=True)
    for line in sys.stdin:
        print(MARK + json.dumps(asdict(probe(json.loads(line), level, decoder))), flush=True)
