# Baseline: DeepLabV3+, mmseg's ResNet-50 v1c, Pascal VOC 2012 + aug, 40,000 steps.
_base_ = './deeplabv3plus_r2n50_voc12aug.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNetV1c',
        depth=50,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        contract_dilation=True,
        norm_cfg={{_base_.norm_cfg}},
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet50_v1c'),
    )
)
