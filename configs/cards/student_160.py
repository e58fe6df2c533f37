# The student alone at longest side 160: half the teacher's backbone width, five
# epochs; batch and learning rate are those of configs/bccd before its sweep.
_base_ = [
    '../_base_/models/atss_r18_narrow.py',
    '../_base_/datasets/cards_160_detection.py',
    '../_base_/schedules/adamw_5e.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmkd'])

model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128]),
    bbox_head=dict(num_classes=6))

train_dataloader = dict(batch_size=4)
train_cfg = dict(val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
