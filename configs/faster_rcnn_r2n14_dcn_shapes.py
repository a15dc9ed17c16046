# What `make demo` trains, with DCNv2 in C3 to C5.
_base_ = './faster_rcnn_r2n14_shapes.py'
model = dict(backbone=dict(type='res2net_mm.Res2NetDCN', dcn=dict(type='DCNv2', deform_groups=1)))
