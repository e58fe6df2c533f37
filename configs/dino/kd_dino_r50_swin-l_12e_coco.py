# DINO: Swin-L teacher of five scales, ResNet-50 student of four, COCO, 12 epochs.
_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDDetector',
    student='DINO',
    teacher=dict(
        config='mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/dino/'
        'dino-5scale_swin-l_8xb2-12e_coco/dino-5scale_swin-l_8xb2-12e_coco_20230228_072924-a654145f.pth',
        # Its finest level has stride 4, which the student's encoder does not see.
        levels=[1, 2, 3, 4]),
    # Queries, matched; the features are what the encoder makes of the neck's.
    distill=dict(
        cls=dict(type='DistillationLoss', region='teacher'),
        box=dict(type='BoxL1Loss'),
        iou=dict(type='BoxIoULoss'),
        neck=dict(type='PKDLoss', loss_weight=0.3)))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
