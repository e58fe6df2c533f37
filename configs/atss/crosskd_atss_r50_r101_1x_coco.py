# CrossKD: the student's features through the teacher's head, with the options of its reference (docs/parity.md).
_base_ = ['./kd_atss_r50_r101_1x_coco.py']

model = dict(
    distill=dict(
        _delete_=True,
        cross=dict(
            type='CrossKDLoss',
            layer=3,
            losses=dict(
                cls=dict(type='BCKDLoss', valid='loss'),
                box=dict(type='BoxIoULoss', loss_weight=1.0, normalizer='foreground', valid='loss'),
                quality=dict(type='QualityLoss', normalizer='foreground', valid='loss')))))
