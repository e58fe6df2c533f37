# PGD-style: neck features where the teacher predicts well.
_base_ = ['./kd_atss_r50_r101_1x_coco.py']

model = dict(
    distill=dict(
        _delete_=True,
        neck=dict(type='PGDLoss', loss_weight=1.0)))
