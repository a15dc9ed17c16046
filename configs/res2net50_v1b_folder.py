# Fine-tunes the authors' weights on a folder of class folders. To use it, inherit from it and set
# data_root and the number of classes (docs/classification.md).
_base_ = ['./_base_/classifier.py', './_base_/image_folder.py', './_base_/schedule_100e.py']
model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint='res2net://res2net50_v1b_26w_4s'),
    ),
    head=dict(num_classes=2),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
max_epochs = 30
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, begin=0, T_max=max_epochs)]
auto_scale_lr = dict(base_batch_size=32)
