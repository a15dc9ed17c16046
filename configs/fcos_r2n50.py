# FCOS, Res2Net-50 v1b 26w 4s, COCO, 1x. Its base is for caffe's weights, which want other images.
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', './_base_/res2net50_detection.py']
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone={{_base_.res2net50}},
)
