# Salient objects (DUTS): U-Net with one channel that starts at the stem (stride 2), Res2Net-50 v1b
# 26w 4s, 40,000 steps.
_base_ = ['./_base_/segmentor.py', './_base_/duts.py', './_base_/schedule_40k.py']
model = dict(
    data_preprocessor=dict(size=(352, 352)),
    backbone=dict(with_stem=True),
    auxiliary_head=None,
    decode_head=dict(
        type='res2net_mm.UNetHead',
        in_channels=[64, 256, 512, 1024, 2048],
        in_index=[0, 1, 2, 3, 4],
        channels=32,
        num_classes=2,
        out_channels=1,
        threshold=0.5,
        dropout_ratio=0.1,
        norm_cfg={{_base_.norm_cfg}},
        align_corners=False,
        loss_decode={{_base_.binary_losses}},
    ),
)
