_base_ = './res2net50_26w_4s_in1k.py'
model = dict(backbone=dict(scales=8))
