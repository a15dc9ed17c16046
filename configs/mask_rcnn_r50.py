# Baseline: Mask R-CNN FPN, mmdet's ResNet-50, COCO, 1x.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['res2net_mm'], allow_failed_imports=False)
