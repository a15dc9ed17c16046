# Panoptic FPN, Res2Net-50 v1b 26w 4s, COCO panoptic, 1x.
_base_ = ['mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', './_base_/res2net50_detection.py']
# mmdet reads and measures panoptic sets with panopticapi; ours stands in where there is none.
custom_imports = dict(
    imports=['res2net_mm', 'res2net_mm.evaluation.panoptic'], allow_failed_imports=False
)
model = dict(backbone={{_base_.res2net50}})
