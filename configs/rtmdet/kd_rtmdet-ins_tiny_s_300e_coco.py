# RTMDet-Ins: small teacher, tiny student, COCO, by classes, boxes, masks and features.
# Its CachedMosaic and CachedMixUp remember samples in each worker: a run does not repeat to the bit with another
# num_workers, or after a resumption.
_base_ = ['mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmdet::rtmdet/rtmdet-ins_s_8xb32-300e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/rtmdet/'
        'rtmdet-ins_s_8xb32-300e_coco/rtmdet-ins_s_8xb32-300e_coco_20221121_212604-fdc5d7ec.pth'),
    distill=dict(
        cls=dict(type='DistillationLoss', region='teacher'),
        box=dict(type='BoxIoULoss'),
        mask=dict(
            type='DistillationLoss', place='prior_masks', region='all', loss_weight=1.0),
        neck=dict(type='PKDLoss', loss_weight=0.3)))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [*_base_.custom_hooks, dict(type='MetricsFileHook')]
