# A folder of class folders: data_root/train/CLASS/*.jpg and data_root/val/CLASS/*.jpg, with the
# same classes in both.
_base_ = './imagenet.py'
data_root = 'data/classes'
extensions = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp')
train_dataloader = dict(
    num_workers=2,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root,
        data_prefix='train',
        extensions=extensions,
        pipeline={{_base_.train_pipeline}},
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root,
        data_prefix='val',
        extensions=extensions,
        pipeline={{_base_.test_pipeline}},
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
