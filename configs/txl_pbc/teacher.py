# The teacher on all labels: the student's neck and head on a MobileNetV2 that begins with ImageNet's weights, 20 epochs.
_base_ = ['./student.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(1, 2, 4, 6),
        norm_cfg=dict(type='BN', requires_grad=True),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='weights/mobilenet_v2_imagenet_mmdet.pth')),
    neck=dict(in_channels=[24, 32, 96, 320]))

optim_wrapper = dict(optimizer=dict(lr=1e-3))
max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True)
]
