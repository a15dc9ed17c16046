# v1: one 7x7 convolution as stem, no pool in the shortcuts.
_base_ = './res2net50_v1b_in1k.py'
model = dict(backbone=dict(deep_stem=False, avg_down=False))
