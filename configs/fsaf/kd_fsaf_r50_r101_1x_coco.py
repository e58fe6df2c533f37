# FSAF: ResNet-101 teacher, ResNet-50 student, COCO.
_base_ = ['mmdet::fsaf/fsaf_r50_fpn_1x_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmdet::fsaf/fsaf_r101_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/fsaf/'
        'fsaf_r101_fpn_1x_coco/fsaf_r101_fpn_1x_coco-9e71098f.pth'),
    distill=dict(
        cls=dict(type='DistillationLoss', region='teacher'),
        box=dict(type='BoxIoULoss')))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
