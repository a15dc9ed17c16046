# Street scenes (CamVid, 11 classes; what is not labelled has the value 11): Semantic FPN on a small
# Res2Net from random weights, minutes on two CPU cores.
_base_ = ['./_base_/sem_fpn.py', './_base_/small_res2net.py']
classes = (
    'Sky',
    'Building',
    'Pole',
    'Road',
    'Pavement',
    'Tree',
    'SignSymbol',
    'Fence',
    'Car',
    'Pedestrian',
    'Bicyclist',
)
ignored = len(classes)
crop_size = (256, 256)
model = dict(
    data_preprocessor=dict(size=crop_size, seg_pad_val=ignored),
    backbone={{_base_.small_res2net}},
    neck=dict(in_channels=[128, 256, 512, 1024], out_channels=64),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=64,
        num_classes=len(classes),
        ignore_index=ignored,
        loss_decode=dict(avg_non_ignore=True),
    ),
)
data = dict(
    type='BaseSegDataset',
    data_root='{{$RES2NET_MM_DATA:data}}/camvid/',
    metainfo=dict(classes=classes),
    img_suffix='.png',
    seg_map_suffix='.png',
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomResize', scale=(480, 360), ratio_range=(0.7, 1.4), keep_ratio=True),
            dict(type='RandomCrop', crop_size=crop_size, ignore_index=ignored),
            dict(type='RandomFlip', prob=0.5),
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
        data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        **data,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'], ignore_index=ignored)
test_evaluator = val_evaluator
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
max_iters = 600
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, T_max=max_iters - 50),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
