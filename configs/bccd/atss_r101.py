# A teacher of full size: ATSS-R101 from scratch (hours on a CPU; bfloat16 halves them).
_base_ = ['./teacher.py']

model = dict(
    backbone=dict(depth=101, base_channels=64, zero_init_residual=True),
    neck=dict(in_channels=[256, 512, 1024, 2048], out_channels=256),
    bbox_head=dict(in_channels=256, feat_channels=256))

train_dataloader = dict(batch_size=4)
optim_wrapper = dict(
    type='BFloat16OptimWrapper',
    optimizer=dict(lr=3e-4),
    clip_grad=dict(max_norm=35, norm_type=2))
default_hooks = dict(checkpoint=dict(interval=1))
