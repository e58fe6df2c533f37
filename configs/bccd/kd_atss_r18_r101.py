# ATSS-R18, distilled from the ATSS-R101 that `python tools/train.py configs/bccd/atss_r101.py` trains.
_base_ = ['./atss_r18.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::bccd/atss_r101.py',
        checkpoint='work_dirs/atss_r101/epoch_24.pth'),
    inherit=['neck', 'bbox_head'],
    distill=dict(
        cls=dict(type='DistillationLoss'),
        box=dict(type='BoxIoULoss'),
        quality=dict(type='QualityLoss'),
        neck=dict(type='PKDLoss', loss_weight=1.0)))
