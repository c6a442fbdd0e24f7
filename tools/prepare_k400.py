# SPDX-License-Identifier: Apache-2.0
"""Lists of Kinetics-400 from the archives of the CVDF mirror: python tools/prepare_k400.py [data/k400] [--short-side
320]

Expected below the folder: train/ and val/ with the unpacked videos, and annotations/{train,val}.csv ('mmpetl fetch
k400' gets the annotations and the lists of archives). Written: {train,val,test}.csv and classes.txt; val.csv and
test.csv are the validation set. Listed videos that are not there are left out and counted. The papers decode mp4 files
of the short side 320: --short-side 320 makes them.
"""

import sys
from pathlib import Path

if (Path(__file__).resolve().parents[1] / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmpetl.datasets.video_prepare import main

if __name__ == '__main__':
    sys.exit(main('k400', __doc__))
