# Baseline: Faster R-CNN FPN, mmdet's ResNet-50, COCO, 1x.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['res2net_mm'], allow_failed_imports=False)
