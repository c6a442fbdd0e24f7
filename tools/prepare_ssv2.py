# SPDX-License-Identifier: Apache-2.0
"""Lists of Something-Something V2 from its official archives: python tools/prepare_ssv2.py [data/ssv2] [--short-side
256]

Expected below the folder: 20bn-something-something-v2/*.webm and something-something-v2-{labels,train,validation}.json
(or labels.json, train.json, validation.json, in the folder itself or in labels/). Written: {train,val,test}.csv and
classes.txt; val.csv and test.csv are the validation set, as the test set's labels play no part in the papers. The
papers decode mp4 files of the native height 240: --short-side 240 makes them.
"""

import sys
from pathlib import Path

if (Path(__file__).resolve().parents[1] / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmpetl.datasets.video_prepare import main

if __name__ == '__main__':
    sys.exit(main('ssv2', __doc__))
