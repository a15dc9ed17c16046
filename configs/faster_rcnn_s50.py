# Faster R-CNN FPN, timm's ResNeSt-50, COCO, 1x.
_base_ = './faster_rcnn_x50.py'
model = dict(backbone=dict(model_name='resnest50d.in1k'))
