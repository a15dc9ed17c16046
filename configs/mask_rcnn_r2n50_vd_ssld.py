# Mask R-CNN FPN, Res2Net-50 vd 26w 4s from distilled weights, COCO, 1x.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/res2net50_vd_ssld.py']
model = dict(backbone={{_base_.res2net50_vd_ssld}})
optim_wrapper = dict(paramwise_cfg={{_base_.ssld_learning_rates}})
