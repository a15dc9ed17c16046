# Baseline: Mask R-CNN FPN, mmdet's ResNet-101, COCO, 1x.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py'
custom_imports = dict(imports=['res2net_mm'], allow_failed_imports=False)
