# Faster R-CNN: ResNet-101 teacher, ResNet-50 student, COCO, 1x.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDDetector',
    student='FasterRCNN',
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/'
        'faster_rcnn_r101_fpn_2x_coco/faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth'),
    # On the student's sampled regions; its classes are a softmax with background.
    distill=dict(
        cls=dict(
            type='DistillationLoss', activation='softmax', region='all', loss_weight=1.0),
        box=dict(type='BoxIoULoss', loss_weight=1.0),
        neck=dict(type='PKDLoss', loss_weight=0.3)))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
