# The student with GFL's head, whose boxes are distributions.
_base_ = ['./student.py']

model = dict(
    type='GFL',
    bbox_head=dict(
        _delete_=True,
        type='GFLHead',
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        stacked_convs=4,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8, 16, 32, 64, 128]),
        loss_cls=dict(
            type='QualityFocalLoss',
            use_sigmoid=True,
            beta=2.0,
            loss_weight=1.0),
        loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
        reg_max=16,
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0)))

# The rate and decay with which it was measured: nothing was tuned for this student.
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05))
