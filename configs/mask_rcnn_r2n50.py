# Mask R-CNN FPN, Res2Net-50 v1b 26w 4s, COCO, 1x.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/res2net50_detection.py']
model = dict(backbone={{_base_.res2net50}})
