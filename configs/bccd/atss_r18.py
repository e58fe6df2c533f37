# A smaller one: ATSS-R18 from scratch, 5 epochs in bfloat16.
_base_ = ['./atss_r50.py']

model = dict(
    backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512]))
