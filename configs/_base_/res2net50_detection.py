# Res2Net-50 v1b 26w 4s as detectors take it: `model = dict(backbone={{_base_.res2net50}})` in a
# child puts it in the place of its other base's backbone.
custom_imports = dict(imports=['res2net_mm'], allow_failed_imports=False)
res2net50 = dict(
    _delete_=True,
    type='res2net_mm.Res2Net',
    depth=50,
    out_indices=(0, 1, 2, 3),
    frozen_stages=1,
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='res2net://res2net50_v1b_26w_4s'),
)
