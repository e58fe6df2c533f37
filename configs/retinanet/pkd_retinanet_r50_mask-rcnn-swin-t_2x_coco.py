# PKD across kinds: a two-stage teacher with a Swin backbone, a RetinaNet student.
# The teacher's strides are 4 to 64, the student's 8 to 128: the four that both have.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_2x_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/swin/'
        'mask_rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco/mask_rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco_20210906_131725-bacf6f7b.pth',
        levels=[1, 2, 3, 4]),
    distill=dict(neck=dict(type='PKDLoss', unbiased=True)))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
