"""Something-Something V2: clips of 8 frames at stride 4, tested on 4 clips of 3 crops that differ (12 views).

Data: mmpetl fetch ssv2, then python tools/prepare_ssv2.py data/ssv2
No flip: "pushing something from left to right" is a class.
"""

_base_ = './ssv2_8x4.py'
test_pipeline = [*_base_.test_pipeline[:3], *_base_.views]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
