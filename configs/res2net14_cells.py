# Blood cells, cut from BCCD's images into class folders (docs/classification.md): a small Res2Net
# from random weights, minutes on a CPU.
_base_ = [
    './_base_/classifier.py',
    './_base_/image_folder.py',
    './_base_/small_res2net.py',
    './_base_/small_schedule.py',
]
model = dict(
    backbone={{_base_.small_res2net}},
    head=dict(num_classes=3, in_channels=1024),
)
data_root = 'data/cells'
size = (64, 64)
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=size, crop_ratio_range=(0.6, 1.0)),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    )
)
val_dataloader = dict(
    batch_size=64,
    dataset=dict(
        data_root=data_root,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=size),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
# five of six cells are red, so the mean recall of the classes says more than the accuracy
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='SingleLabelMetric', items=('recall',)),
]
test_evaluator = val_evaluator
auto_scale_lr = dict(base_batch_size=32)
