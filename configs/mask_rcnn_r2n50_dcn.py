# Mask R-CNN FPN, Res2Net-50 v1b 26w 4s with DCNv2 in C3 to C5, COCO, 1x.
_base_ = './mask_rcnn_r2n50.py'
model = dict(backbone=dict(type='res2net_mm.Res2NetDCN', dcn=dict(type='DCNv2', deform_groups=1)))
