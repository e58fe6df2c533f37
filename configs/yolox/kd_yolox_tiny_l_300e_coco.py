# YOLOX: large teacher, tiny student, COCO.
_base_ = ['mmdet::yolox/yolox_tiny_8xb8-300e_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmdet::yolox/yolox_l_8xb8-300e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/yolox/'
        'yolox_l_8x8_300e_coco/yolox_l_8x8_300e_coco_20211126_140236-d3bd2b23.pth'),
    distill=dict(
        cls=dict(type='DistillationLoss', region='teacher'),
        box=dict(type='BoxIoULoss'),
        quality=dict(type='QualityLoss')))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [*_base_.custom_hooks, dict(type='MetricsFileHook')]
