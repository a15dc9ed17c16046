# The same with Res2Net-101 v1b 26w 4s.
_base_ = './td_hm_r2n50_coco_256x192.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='res2net://res2net101_v1b_26w_4s')))
