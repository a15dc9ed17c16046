_base_ = './res2net50_v1b_in1k.py'
model = dict(backbone=dict(depth=101))
