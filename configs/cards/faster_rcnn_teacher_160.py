# Playing cards at longest side 160: narrow Faster R-CNN-R18, from scratch, 60 epochs.
_base_ = [
    '../_base_/models/faster_rcnn_r18_narrow.py',
    '../_base_/datasets/cards_160_detection.py',
    '../_base_/schedules/adamw_60e.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmkd'])

model = dict(roi_head=dict(bbox_head=dict(num_classes=6)))

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=5, max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
