# FCN, Res2Net-50 v1b 26w 4s, Cityscapes, 80,000 steps.
_base_ = ['./_base_/fcn.py', './_base_/cityscapes.py', './_base_/schedule_80k.py']
model = dict(
    data_preprocessor=dict(size=(512, 1024)),
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
)
