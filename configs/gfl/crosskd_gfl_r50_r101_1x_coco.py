# CrossKD on GFL, with the losses of its reference.
_base_ = ['./ld_gfl_r50_r101_1x_coco.py']

model = dict(
    distill=dict(
        _delete_=True,
        cross=dict(
            type='CrossKDLoss',
            layer=3,
            losses=dict(
                cls=dict(type='BCKDLoss'),
                box=dict(type='BoxIoULoss')))))
