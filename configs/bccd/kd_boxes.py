# Class logits, decoded boxes and centerness.
_base_ = ['./kd.py']

model = dict(
    distill=dict(
        cls=dict(type='DistillationLoss'),
        box=dict(type='BoxIoULoss'),
        quality=dict(type='QualityLoss')))
