# SPDX-License-Identifier: Apache-2.0
"""Lists of HMDB51 from its official archives: python tools/prepare_hmdb51.py [data/hmdb51] [--short-side 256]

Expected below the folder: hmdb51_org/<class>/*.avi (unpack hmdb51_org.rar, then the .rar of every class, into a folder
per class) and testTrainMulti_7030_splits/*.txt. Written: split{1,2,3}/{train,val,test}.csv and classes.txt; counts are
checked against the published ones.
"""

import sys
from pathlib import Path

if (Path(__file__).resolve().parents[1] / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmpetl.datasets.video_prepare import main

if __name__ == '__main__':
    sys.exit(main('hmdb51', __doc__))
