# Faster R-CNN ResNet-50 from a Cascade Mask R-CNN X101, which refines the student's regions as it tests.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDDetector',
    student='FasterRCNN',
    teacher=dict(
        config='mmdet::cascade_rcnn/cascade-mask-rcnn_x101-64x4d_fpn_20e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/cascade_rcnn/'
        'cascade_mask_rcnn_x101_64x4d_fpn_20e_coco/cascade_mask_rcnn_x101_64x4d_fpn_20e_coco_20200512_161033-bdb5126a.pth'),
    # On the student's sampled regions; its classes are a softmax with background.
    distill=dict(
        cls=dict(
            type='DistillationLoss', activation='softmax', region='all', loss_weight=1.0),
        box=dict(type='BoxIoULoss', loss_weight=1.0),
        neck=dict(type='PKDLoss', loss_weight=0.3)))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
