# PaddleClas's Res2Net-50 vd, for its weights: its first-block rule, and OpenCV to resize for tests.
_base_ = './res2net50_v1b_in1k.py'
model = dict(backbone=dict(first_block='paddle'))
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=256, edge='short'),
            dict(type='CenterCrop', crop_size=224),
            dict(type='PackInputs'),
        ]
    )
)
test_dataloader = val_dataloader
