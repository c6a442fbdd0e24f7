# SPDX-License-Identifier: Apache-2.0
"""Lists of UCF101 from its official archives: python tools/prepare_ucf101.py [data/ucf101] [--short-side 256]

Expected below the folder: UCF-101/<Class>/*.avi and ucfTrainTestlist/*.txt. Written: split{1,2,3}/{train,val,test}.csv
and classes.txt; counts are checked against the published ones.
"""

import sys
from pathlib import Path

if (Path(__file__).resolve().parents[1] / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmpetl.datasets.video_prepare import main

if __name__ == '__main__':
    sys.exit(main('ucf101', __doc__))
