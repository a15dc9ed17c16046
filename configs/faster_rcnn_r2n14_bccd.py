# Blood cells (the BCCD data set, VOC format): what a child config of a VOC folder looks like.
_base_ = './faster_rcnn_r2n14_voc.py'
data = dict(
    data_root='{{$RES2NET_MM_DATA:data}}/bccd/',
    metainfo=dict(classes=('RBC', 'WBC', 'Platelets')),
)
train_dataloader = val_dataloader = test_dataloader = dict(dataset=data)
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
