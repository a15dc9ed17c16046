# Res2NeXt-29 6c x 24w x 4s (section 4.3 of the paper), CIFAR-100, 300 epochs.
_base_ = './_base_/cifar100.py'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='res2net_mm.Res2Net',
        depth=29,
        base_width=24,
        groups=6,
        first_block='grouped',
        deep_stem=False,
        avg_down=False,
        stem_stride=1,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        norm_eval=False,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        in_channels=1024,
        num_classes=100,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
