# The student of the demo, trained alone: half the teacher's width, 5 epochs.
_base_ = [
    '../_base_/models/atss_r18_narrow.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/adamw_5e.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmkd'])

model = dict(
    backbone=dict(base_channels=16), neck=dict(in_channels=[16, 32, 64, 128]))

train_dataloader = dict(batch_size=4)
# Both found by configs/sweeps/bccd_features_bayes.yaml.
optim_wrapper = dict(optimizer=dict(lr=1.66e-3, weight_decay=6.75e-3))
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
