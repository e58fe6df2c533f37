# MGD: the teacher's neck features from the student's masked ones.
_base_ = ['./kd_atss_r50_r101_1x_coco.py']

model = dict(
    distill=dict(
        _delete_=True,
        neck=dict(type='MGDLoss', loss_weight=2e-5)))
