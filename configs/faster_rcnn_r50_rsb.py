# Faster R-CNN FPN, timm's ResNet-50 with the weights of "ResNet strikes back" (arXiv 2110.00476),
# COCO, 1x. The optimizer is the one that mmdet takes for such weights.
_base_ = './faster_rcnn_x50.py'
model = dict(backbone=dict(model_name='resnet50.a1_in1k'))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.0002, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bypass_duplicate=True),
)
