# RepPoints: ResNet-101 teacher, ResNet-50 student, COCO.
_base_ = ['mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmdet::reppoints/reppoints-moment_r101_fpn-gn_head-gn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/reppoints/'
        'reppoints_moment_r101_fpn_gn-neck%2Bhead_2x_coco/reppoints_moment_r101_fpn_gn-neck%2Bhead_2x_coco_20200329-4fbc7310.pth'),
    distill=dict(
        cls=dict(type='DistillationLoss', region='teacher'),
        box=dict(type='BoxIoULoss')))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
