# A student of full size, trained alone: ATSS-R50 from scratch, 5 epochs in bfloat16.
_base_ = ['./atss_r101.py']

model = dict(backbone=dict(depth=50))

train_cfg = dict(max_epochs=5, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=5,
        T_max=5,
        convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
