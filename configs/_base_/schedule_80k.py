# 80,000 steps, the learning rate falling by a power of 0.9.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=80000, val_interval=4000)
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=80000, by_epoch=False)]
