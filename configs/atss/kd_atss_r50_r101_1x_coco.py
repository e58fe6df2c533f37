# ATSS: ResNet-101 teacher, ResNet-50 student, COCO, 1x.
_base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmdet::atss/atss_r101_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/atss/'
        'atss_r101_fpn_1x_coco/atss_r101_fpn_1x_20200825-dfcadd6f.pth'),
    distill=dict(cls=dict(type='DistillationLoss')))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
