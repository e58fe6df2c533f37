# CrossKD on GFL, with the losses and options of its reference (docs/parity.md).
_base_ = ['./ld_gfl_r50_r101_1x_coco.py']

model = dict(
    distill=dict(
        _delete_=True,
        cross=dict(
            type='CrossKDLoss',
            layer=3,
            losses=dict(
                cls=dict(type='BCKDLoss', valid='loss'),
                box=dict(
                    type='LocalizationDistillationLoss',
                    loss_weight=4,
                    region='teacher',
                    teacher_weight=1,
                    temperature=1,
                    valid='loss')))))
