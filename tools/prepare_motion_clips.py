# SPDX-License-Identifier: Apache-2.0
"""Clips and weights of the video demo: python tools/prepare_motion_clips.py [--train 60] [--test 30]

Fetches DINOv2 ViT-S/14 and the drawings of Quick, Draw! (see tools/fetch_data.py), renders six clips of each drawing as
mp4 files (it moves left, right, up, down, grows, shrinks), and inflates the image model to a video model. All of it
goes into the cache folder ~/.cache/mmpetl, or where the environment variable MMPETL_CACHE points; what is there already
is reused.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))

from mmengine.config import Config

from mmpetl.datasets import fetch, motion_clips
from mmpetl.datasets.prepare import prepare


def main() -> int:
    """Run the tool; 0 if everything is there, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--train', type=int, default=60, help='drawings for training, each in six clips (default 60)')
    parser.add_argument(
        '--test', type=int, default=30, help='other drawings for testing, each in six clips (default 30)')
    args = parser.parse_args()
    try:
        weights, drawings = prepare('dinov2-vits14'), prepare('quickdraw20')
        cache = fetch.cache_dir()
        clips = motion_clips.prepare_clips(cache / 'motion6', drawings, args.train, args.test)
        print(f'motion6: {6 * args.train} + {6 * args.test} clips in {clips}')
        backbone = Config.fromfile(ROOT / 'configs/_base_/backbones/videomae-dinov2-small.py').model.backbone.to_dict()
        for name, timed in (('videomae_dinov2s', True), ('videomae_dinov2s_untimed', False)):
            path = cache / f'{name}.safetensors'
            if not path.is_file():
                motion_clips.write_weights(path, motion_clips.inflate(weights, backbone, timed))
            print(f'{name}: {path}')
    except (fetch.FetchError, KeyError, OSError, RuntimeError, ValueError) as error:
        print(f'error: {error.args[0] if isinstance(error, KeyError) else error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
