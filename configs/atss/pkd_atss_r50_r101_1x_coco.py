# PKD: correlation of neck features.
_base_ = ['./kd_atss_r50_r101_1x_coco.py']

model = dict(
    distill=dict(
        _delete_=True,
        neck=dict(type='PKDLoss', unbiased=True)))
