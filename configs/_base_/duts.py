# DUTS (saliency): images and masks in data/DUTS, as its two zip files unpack; 16 images a step.
data_root = 'data/DUTS'
size = (352, 352)
binary_losses = [
    dict(type='CrossEntropyLoss', use_sigmoid=True, avg_non_ignore=True),
    dict(type='res2net_mm.BinaryDiceLoss', naive_dice=True, eps=1.0),
]
metainfo = dict(classes=('background', 'salient'), palette=[[0, 0, 0], [220, 20, 60]])
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='DUTS-TR/DUTS-TR-Image', seg_map_path='DUTS-TR/DUTS-TR-Mask'),
        metainfo=metainfo,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='res2net_mm.LoadMaskAnnotations'),
            dict(type='Resize', scale=size, keep_ratio=False),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='DUTS-TE/DUTS-TE-Image', seg_map_path='DUTS-TE/DUTS-TE-Mask'),
        metainfo=metainfo,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=size, keep_ratio=False),  # masks stay as they are
            dict(type='res2net_mm.LoadMaskAnnotations'),
            dict(type='PackSegInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
# normalize: as papers measure, who save maps as pictures
val_evaluator = dict(type='res2net_mm.SaliencyMetric', normalize=True)
test_evaluator = val_evaluator
auto_scale_lr = dict(enable=False, base_batch_size=16)
