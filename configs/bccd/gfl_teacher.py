# A GFL of twice the student's width, trained eight times as long.
_base_ = ['./gfl_student.py']

model = dict(
    backbone=dict(base_channels=32), neck=dict(in_channels=[32, 64, 128, 256]))

train_cfg = dict(max_epochs=40, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=40,
        T_max=40,
        convert_to_iter_based=True)
]
