# Segmentors on features of stride 8: C4 and C5 dilated.
_base_ = './segmentor.py'
model = dict(backbone=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True))
