# Panoptic FPN, Res2Net-101 v1b 26w 4s, COCO panoptic, 1x.
_base_ = './panoptic_fpn_r2n50.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='res2net://res2net101_v1b_26w_4s')))
