# Faster R-CNN FPN, timm's ResNeXt-50 32x4d with torchvision's weights, COCO, 1x.
_base_ = './faster_rcnn_r50.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='res2net_mm.TimmBackbone',
        model_name='resnext50_32x4d.tv_in1k',
        pretrained=True,
        frozen_stages=1,
        norm_eval=True,
    )
)
