# The student alone on all labels: a narrow ATSS from scratch, 10 epochs of 126 batches.
_base_ = [
    '../_base_/models/atss_r18_narrow.py',
    '../_base_/datasets/txl_pbc_detection.py',
    '../_base_/schedules/adamw_10e.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmkd'])

model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128]),
    bbox_head=dict(anchor_generator=dict(octave_base_scale=4)))

train_cfg = dict(val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
