# Hybrid Task Cascade, Res2Net-101 v1b 26w 4s, COCO with its stuff maps, 20 epochs.
_base_ = './htc_r2n50_20e.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='res2net://res2net101_v1b_26w_4s')))
