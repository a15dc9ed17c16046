# PSPNet, Res2Net-50 v1b 26w 4s, Pascal VOC 2012 + aug, 40,000 steps.
_base_ = ['./_base_/pspnet.py', './_base_/voc12aug.py', './_base_/schedule_40k.py']
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=21),
    auxiliary_head=dict(num_classes=21),
)
