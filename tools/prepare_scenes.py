# SPDX-License-Identifier: Apache-2.0
"""A small task of segmentation: python tools/prepare_scenes.py [--train 96] [--val 24] [--test 48]

Fetches DINOv2 ViT-S/14 and drawings of Quick, Draw! and composes scenes of them, with the class of every pixel.
Everything goes into the cache folder ~/.cache/mmpetl, or where the environment variable MMPETL_CACHE points; what is
there already is reused.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))

from mmpetl.datasets import fetch, scenes
from mmpetl.datasets.prepare import prepare


def main() -> int:
    """Run the tool; 0 if everything is there, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part, count in (('train', 96), ('val', 24), ('test', 48)):
        parser.add_argument(f'--{part}', type=int, default=count, help=f'scenes (default {count})')
    args = parser.parse_args()
    try:
        prepare('dinov2-vits14')
        print('scenes6:', scenes.prepare_scenes(fetch.cache_dir() / 'scenes6', prepare('quickdraw20'), vars(args)))
    except (fetch.FetchError, KeyError, OSError, RuntimeError, ValueError) as error:
        print(f'error: {error.args[0] if isinstance(error, KeyError) else error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
