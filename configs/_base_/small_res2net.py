# Res2Net-14 at half width: small enough to train from random weights on a CPU.
small_res2net = dict(
    _delete_=True,
    type='res2net_mm.Res2Net',
    depth=14,
    base_channels=32,
    base_width=14,
    stem_channels=32,
    norm_eval=False,
    zero_init_residual=False,
)
