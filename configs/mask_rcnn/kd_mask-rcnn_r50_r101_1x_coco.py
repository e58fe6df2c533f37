# Mask R-CNN: ResNet-101 teacher, ResNet-50 student, COCO, 1x.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDDetector',
    student='MaskRCNN',
    teacher=dict(
        config='mmdet::mask_rcnn/mask-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/'
        'mask_rcnn_r101_fpn_2x_coco/mask_rcnn_r101_fpn_2x_coco_bbox_mAP-0.408__segm_mAP-0.366_20200505_071027-14b391c7.pth'),
    # On the student's sampled regions; its classes are a softmax with background.
    distill=dict(
        cls=dict(
            type='DistillationLoss', activation='softmax', region='all', loss_weight=1.0),
        box=dict(type='BoxIoULoss', loss_weight=1.0),
        mask=dict(
            type='DistillationLoss', place='masks', region='all', loss_weight=1.0),
        neck=dict(type='PKDLoss', loss_weight=0.3)))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
