# PSPNet, Res2Net-101 v1b 26w 4s, Pascal VOC 2012 + aug, 40,000 steps.
_base_ = './pspnet_r2n50_voc12aug.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='res2net://res2net101_v1b_26w_4s')))
