# DeepLabV3+, Res2Net-50 v1b 26w 4s, Pascal VOC 2012 + aug, 40,000 steps, output stride 16,
# as in the paper (arXiv 1904.01169).
_base_ = ['./_base_/deeplabv3plus.py', './_base_/voc12aug.py', './_base_/schedule_40k.py']
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    decode_head=dict(dilations=(1, 6, 12, 18), num_classes=21),
    auxiliary_head=dict(num_classes=21),
)
