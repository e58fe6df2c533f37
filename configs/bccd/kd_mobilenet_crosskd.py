# MobileNetV2 learns from a ResNet by CrossKD and features. The features' share, and that nothing is inherited, were chosen on a
# validation split (docs/results-tables.md).
_base_ = ['./kd_mobilenet.py']

model = dict(
    distill=dict(
        _delete_=True,
        cross=dict(
            type='CrossKDLoss',
            loss_weight='auto',
            losses=dict(
                cls=dict(type='BCKDLoss'),
                box=dict(type='BoxIoULoss'),
                quality=dict(type='QualityLoss'))),
        neck=dict(type='PKDLoss', loss_weight='auto', share=8.0)))
