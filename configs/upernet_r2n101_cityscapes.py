# UPerNet, Res2Net-101 v1b 26w 4s, Cityscapes, 80,000 steps.
_base_ = './upernet_r2n50_cityscapes.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='res2net://res2net101_v1b_26w_4s')))
