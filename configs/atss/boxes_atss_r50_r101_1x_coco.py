# Class logits, decoded boxes and centerness, weighted by the teacher's score.
_base_ = ['./kd_atss_r50_r101_1x_coco.py']

model = dict(
    distill=dict(
        _delete_=True,
        cls=dict(type='DistillationLoss'),
        box=dict(type='BoxIoULoss'),
        quality=dict(type='QualityLoss')))
