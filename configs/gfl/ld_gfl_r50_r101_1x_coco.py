# GFL with localization distillation (LD): ResNet-101 teacher, ResNet-50 student, COCO.
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/'
        'gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth'),
    distill=dict(
        cls=dict(type='DistillationLoss'),
        # The weights of its reference: 0.25 and 0.0625 over the 17 bins, no divisor.
        box=dict(
            type='LocalizationDistillationLoss',
            normalizer='none',
            main_weight=0.25 / 17,
            vlr_weight=0.0625 / 17,
            valid='pad')))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
