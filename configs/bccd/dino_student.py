# A DINO with a backbone of half the teacher's width, trained alone for 5 epochs.
_base_ = [
    '../_base_/models/dino_r18_narrow.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/adamw_5e.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmkd'])

model = dict(
    backbone=dict(base_channels=16), neck=dict(in_channels=[64, 128]))

train_dataloader = dict(batch_size=4)
optim_wrapper = dict(
    optimizer=dict(lr=4e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2))
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
