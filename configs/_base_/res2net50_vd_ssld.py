# Res2Net-50 vd 26w 4s from PaddleClas's distilled (SSLD) weights, as detectors take it, and its
# learning rates: PaddleDetection trains from such weights with lr_mult_list
# [0.05, 0.05, 0.1, 0.15], one a stage (the first is frozen).
custom_imports = dict(imports=['res2net_mm'], allow_failed_imports=False)
res2net50_vd_ssld = dict(
    _delete_=True,
    type='res2net_mm.Res2Net',
    depth=50,
    first_block='paddle',
    out_indices=(0, 1, 2, 3),
    frozen_stages=1,
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='res2net://res2net50_vd_26w_4s_ssld'),
)
ssld_learning_rates = dict(
    custom_keys={
        'backbone.layer2': dict(lr_mult=0.05),
        'backbone.layer3': dict(lr_mult=0.1),
        'backbone.layer4': dict(lr_mult=0.15),
    }
)
