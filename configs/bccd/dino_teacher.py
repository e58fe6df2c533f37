# A narrow DINO-R18, from scratch, 15 epochs: the teacher of kd_dino.py.
_base_ = [
    '../_base_/models/dino_r18_narrow.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/adamw_5e.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmkd'])

train_dataloader = dict(batch_size=4)
train_cfg = dict(max_epochs=15, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=15,
        T_max=15,
        convert_to_iter_based=True)
]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=5, max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
optim_wrapper = dict(
    optimizer=dict(lr=4e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2))
