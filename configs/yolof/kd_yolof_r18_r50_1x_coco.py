# YOLOF: ResNet-50 teacher, ResNet-18 student, COCO.
_base_ = ['mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDSingleStageDetector',
    # As torchvision's weights were trained; the teacher gets its own pixels.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True),
    backbone=dict(
        depth=18,
        style='pytorch',
        norm_cfg=dict(requires_grad=True),
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=512),
    teacher=dict(
        config='mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/yolof/'
        'yolof_r50_c5_8x8_1x_coco/yolof_r50_c5_8x8_1x_coco_20210425_024427-8e864411.pth'),
    distill=dict(
        cls=dict(type='DistillationLoss', region='teacher'),
        box=dict(type='BoxIoULoss')))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
