# SPDX-License-Identifier: Apache-2.0
"""VTAB-1k from TensorFlow Datasets' files, without TensorFlow: python tools/prepare_vtab.py [ROOT]

Expected: <root>/<name>[/<config>]/<version>/<name>-<split>.tfrecord-00000-of-00005, as TensorFlow Datasets prepares
them.
Written: data/vtab-1k/<task>/images/*/*.png, train800.txt, val200.txt, train800val200.txt and test.txt.
"""

import sys
from pathlib import Path

if (Path(__file__).resolve().parents[1] / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmpetl.datasets.vtab_records import main

if __name__ == '__main__':
    sys.exit(main(__doc__))
