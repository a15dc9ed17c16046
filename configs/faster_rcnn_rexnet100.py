# Faster R-CNN FPN, timm's ReXNet-1.0x, COCO, 1x.
_base_ = './faster_rcnn_x50.py'
model = dict(
    backbone=dict(model_name='rexnet_100.nav_in1k'), neck=dict(in_channels=[38, 61, 128, 185])
)
