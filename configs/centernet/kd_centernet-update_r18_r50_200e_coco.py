# CenterNet-update: ResNet-50 teacher, ResNet-18 student, COCO.
_base_ = ['mmdet::centernet/centernet-update_r18_fpn_8xb8-amp-lsj-200e_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmdet::centernet/centernet-update_r50-caffe_fpn_ms-1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/centernet/'
        'centernet-update_r50-caffe_fpn_ms-1x_coco/centernet-update_r50-caffe_fpn_ms-1x_coco_20230512_203845-8306baf2.pth'),
    distill=dict(
        cls=dict(type='DistillationLoss', region='teacher'),
        box=dict(type='BoxIoULoss')))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
