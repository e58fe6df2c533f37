# DDOD: ResNet-50 teacher, ResNet-18 student, COCO.
_base_ = ['mmdet::ddod/ddod_r50_fpn_1x_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDSingleStageDetector',
    backbone=dict(
        depth=18,
        style='pytorch',
        norm_cfg=dict(requires_grad=True),
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
    teacher=dict(
        config='mmdet::ddod/ddod_r50_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/ddod/'
        'ddod_r50_fpn_1x_coco/ddod_r50_fpn_1x_coco_20220523_223737-29b2fc67.pth'),
    distill=dict(
        cls=dict(type='DistillationLoss', region='teacher'),
        box=dict(type='BoxIoULoss')))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
