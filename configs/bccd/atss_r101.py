# A teacher of full size: ATSS-R101 from scratch, 24 epochs (hours on a CPU, in bfloat16).
_base_ = ['./teacher.py']

model = dict(
    backbone=dict(depth=101, base_channels=64, zero_init_residual=True),
    neck=dict(in_channels=[256, 512, 1024, 2048], out_channels=256),
    bbox_head=dict(in_channels=256, feat_channels=256))

train_dataloader = dict(batch_size=4)
train_cfg = dict(max_epochs=24, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=24,
        T_max=24,
        convert_to_iter_based=True)
]
optim_wrapper = dict(
    type='BFloat16OptimWrapper',
    optimizer=dict(lr=3e-4),
    clip_grad=dict(max_norm=35, norm_type=2))
default_hooks = dict(checkpoint=dict(interval=1))
custom_hooks = [dict(type='MetricsFileHook'), dict(type='ChannelsLastHook')]
