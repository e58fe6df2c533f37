# A Faster R-CNN of half the teacher's width at longest side 160, trained alone for 20 epochs.
_base_ = [
    '../_base_/models/faster_rcnn_r18_narrow.py',
    '../_base_/datasets/cards_160_detection.py',
    '../_base_/schedules/adamw_20e.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmkd'])

model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128]),
    roi_head=dict(bbox_head=dict(num_classes=6)))

train_dataloader = dict(batch_size=4)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
