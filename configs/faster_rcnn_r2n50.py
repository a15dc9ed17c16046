# Faster R-CNN FPN, Res2Net-50 v1b 26w 4s, COCO, 1x: 12 epochs at 16 images a step.
# Without pretrained weights: tools/train.py --from-scratch
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', './_base_/res2net50_detection.py']
model = dict(backbone={{_base_.res2net50}})
