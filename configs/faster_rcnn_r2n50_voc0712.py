# Faster R-CNN FPN, Res2Net-50 v1b 26w 4s, Pascal VOC 2007 + 2012, measured on 2007 test.
_base_ = ['mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py', './_base_/res2net50_detection.py']
model = dict(backbone={{_base_.res2net50}})
