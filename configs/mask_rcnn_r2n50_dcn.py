# Mask R-CNN FPN, Res2Net-50 v1b 26w 4s with DCNv2 in C3 to C5, COCO, 1x.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['res2net_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='res2net_mm.Res2NetDCN',
        depth=50,
        dcn=dict(type='DCNv2', deform_groups=1),
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='res2net://res2net50_v1b_26w_4s'),
    )
)
