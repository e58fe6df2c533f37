# SSDLite: MobileNetV2 teacher, one of half the width as student, COCO.
_base_ = ['mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDSingleStageDetector',
    backbone=dict(widen_factor=0.5),
    neck=dict(
        in_channels=(48, 1280),
        out_channels=(48, 1280, 512, 256, 256, 128)),
    bbox_head=dict(in_channels=(48, 1280, 512, 256, 256, 128)),
    teacher=dict(
        config='mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/ssd/'
        'ssdlite_mobilenetv2_scratch_600e_coco/'
        'ssdlite_mobilenetv2_scratch_600e_coco_20210629_110627-974d9307.pth'),
    # Its classes are a softmax with background.
    distill=dict(
        cls=dict(
            type='DistillationLoss', activation='softmax', region='teacher'),
        box=dict(type='BoxIoULoss')))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [*_base_.custom_hooks, dict(type='MetricsFileHook')]
