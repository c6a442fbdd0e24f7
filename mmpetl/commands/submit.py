# SPDX-License-Identifier: Apache-2.0
"""``mmpetl submit DIR``: write the ELEVATER submission of a finished sweep."""

import argparse
import os

from ..sweeps.submission import submission, write_submission


def run(args: argparse.Namespace) -> None:
    """``mmpetl submit``."""
    out = args.out or os.path.join(args.dir, 'all_predictions.zip')
    entries = submission(args.dir, args.name, complete=not args.partial)
    write_submission(entries, out)
    print(
        f'{out}: {len(entries)} data sets, seeds {", ".join(map(str, entries[0]["rnd_seeds"]))}, '
        f'{os.path.getsize(out) / 2**10:,.0f} KiB'
    )
