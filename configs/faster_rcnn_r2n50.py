# Faster R-CNN FPN, Res2Net-50 v1b 26w 4s, COCO, 1x: 12 epochs at 16 images a step.
# Without pretrained weights: tools/train.py --from-scratch
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['res2net_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='res2net_mm.Res2Net',
        depth=50,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='res2net://res2net50_v1b_26w_4s'),
    )
)
