# Salient objects (DUTS): Semantic FPN with one channel, Res2Net-50 v1b 26w 4s, 40,000 steps.
_base_ = ['./_base_/sem_fpn.py', './_base_/duts.py', './_base_/schedule_40k.py']
model = dict(
    data_preprocessor=dict(size=(352, 352)),
    decode_head=dict(
        type='res2net_mm.BinaryFPNHead',
        num_classes=2,
        out_channels=1,
        threshold=0.5,
        loss_decode={{_base_.binary_losses}},
    ),
)
