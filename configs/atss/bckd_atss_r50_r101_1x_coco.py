# BCKD: class logits by a modulated cross entropy, boxes by GIoU where scores disagree; the options of its reference.
_base_ = ['./kd_atss_r50_r101_1x_coco.py']

model = dict(
    distill=dict(
        _delete_=True,
        cls=dict(type='BCKDLoss', every_level=False, valid='pad'),
        box=dict(
            type='BoxIoULoss',
            loss_weight=4,
            region='disagreement',
            normalizer='foreground',
            every_level=False,
            valid='pad')))
