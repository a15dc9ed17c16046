# Baseline: DeepLabV3+, mmseg's ResNet-101 v1c, Pascal VOC 2012 + aug, 40,000 steps.
_base_ = './deeplabv3plus_r50_voc12aug.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://resnet101_v1c')))
