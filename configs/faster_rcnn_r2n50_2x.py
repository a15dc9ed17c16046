# Faster R-CNN FPN, Res2Net-50 v1b 26w 4s, COCO, 2x.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py', './_base_/res2net50_detection.py']
model = dict(backbone={{_base_.res2net50}})
