# Blood cells (the BCCD data set, VOC format): what a child config of a VOC folder looks like.
_base_ = './faster_rcnn_r2n14_voc.py'
data = dict(
    data_root='{{$RES2NET_MM_DATA:data}}/bccd/',
    metainfo=dict(classes=('RBC', 'WBC', 'Platelets')),
)
train_dataloader = val_dataloader = test_dataloader = dict(dataset=data)
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
