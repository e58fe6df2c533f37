# DIST: correlations between and within classes.
_base_ = ['./kd_atss_r50_r101_1x_coco.py']

model = dict(
    distill=dict(
        _delete_=True,
        cls=dict(type='DISTLoss', relation='batch')))
