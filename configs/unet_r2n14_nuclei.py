# Cell nuclei (Data Science Bowl 2018, masks): U-Net with one channel on a small Res2Net, from the
# stem on and from random weights, minutes on two CPU cores.
_base_ = './_base_/segmentor.py'
crop_size = (256, 256)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        _delete_=True,
        type='res2net_mm.Res2Net',
        depth=14,
        base_channels=32,
        base_width=14,
        stem_channels=32,
        norm_eval=False,
        zero_init_residual=False,
        with_stem=True,
    ),
    auxiliary_head=None,
    decode_head=dict(
        type='res2net_mm.UNetHead',
        in_channels=[32, 128, 256, 512, 1024],
        in_index=[0, 1, 2, 3, 4],
        channels=16,
        num_classes=2,
        out_channels=1,
        threshold=0.5,
        dropout_ratio=0.0,
        norm_cfg={{_base_.norm_cfg}},
        align_corners=False,
        loss_decode=[
            dict(type='CrossEntropyLoss', use_sigmoid=True, avg_non_ignore=True),
            dict(type='res2net_mm.BinaryDiceLoss', naive_dice=True, eps=1.0),
        ],
    ),
)
data = dict(
    type='BaseSegDataset',
    data_root='{{$RES2NET_MM_DATA:data}}/nuclei/',
    metainfo=dict(classes=('background', 'nucleus'), palette=[[0, 0, 0], [220, 20, 60]]),
    img_suffix='.png',
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='images/train', seg_map_path='semseg/train'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='res2net_mm.LoadMaskAnnotations'),
            dict(type='RandomCrop', crop_size=crop_size),
            dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
        **data,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='images/val', seg_map_path='semseg/val'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='res2net_mm.LoadMaskAnnotations'),
            dict(type='PackSegInputs'),
        ],
        **data,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='res2net_mm.SaliencyMetric'),
    dict(type='IoUMetric', iou_metrics=['mIoU', 'mDice']),
]
test_evaluator = val_evaluator
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
max_iters = 300
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, T_max=max_iters - 50),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
