# DeepLabV3+, Res2Net-50 v1b 26w 4s, ADE20K, 160,000 steps.
_base_ = ['./_base_/deeplabv3plus.py', './_base_/ade20k.py', './_base_/schedule_160k.py']
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
