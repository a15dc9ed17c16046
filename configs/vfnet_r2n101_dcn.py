# VarifocalNet, Res2Net-101 v1b 26w 4s with DCNv2 in C3 to C5 and in the head, COCO, 2x,
# multi-scale: mmdet's own network on this package's backbone.
_base_ = 'mmdet::vfnet/vfnet_res2net101-mdconv-c3-c5_fpn_ms-2x_coco.py'
custom_imports = dict(imports=['res2net_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        type='res2net_mm.Res2NetDCN',
        init_cfg=dict(checkpoint='res2net://res2net101_v1b_26w_4s'),
    )
)
