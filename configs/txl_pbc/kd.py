# The recommended recipe on all labels, without a number in it: each weight sets itself.
_base_ = ['./student.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::txl_pbc/teacher.py',
        checkpoint='work_dirs/txl_pbc_teacher/epoch_20.pth'),
    inherit=['neck', 'bbox_head'],
    distill=dict(
        cls=dict(type='DistillationLoss', loss_weight='auto'),
        box=dict(type='BoxIoULoss', loss_weight='auto'),
        quality=dict(type='QualityLoss', loss_weight='auto'),
        neck=dict(type='PKDLoss', loss_weight='auto')))
