# KD-DETR (Wang et al., CVPR 2024, arXiv 2211.08071): DAB-DETR, ResNet-50 teacher, ResNet-18 student, COCO.
_base_ = ['mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDDetector',
    student='DABDETR',
    backbone=dict(
        depth=18,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[512]),
    teacher=dict(
        config='mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/dab_detr/'
        'dab-detr_r50_8xb2-50e_coco/dab-detr_r50_8xb2-50e_coco_20221122_120837-c1035c8c.pth'),
    # The student answers the teacher's queries too; the options of the reference, which adds the six layers
    # (docs/parity.md).
    distill=dict(
        cls=dict(
            type='DistillationLoss',
            place='shared_queries',
            loss_weight=1.0,
            activation='softmax',
            temperature=10,
            region='teacher',
            normalizer='none',
            reduction='mean'),
        box=dict(type='BoxL1Loss', place='shared_queries', loss_weight=6 * 1.25),
        iou=dict(type='BoxIoULoss', place='shared_queries', loss_weight=6 * 2.0)))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
