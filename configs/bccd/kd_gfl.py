# GFL learns from GFL: class logits, the distributions of the boxes' sides, features; neck and head begin with the
# teacher's weights.
_base_ = ['./gfl_student.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::bccd/gfl_teacher.py',
        checkpoint='work_dirs/bccd_gfl/teacher/epoch_40.pth'),
    inherit=['neck', 'bbox_head'],
    distill=dict(
        cls=dict(type='DistillationLoss', loss_weight='auto'),
        box=dict(type='LocalizationDistillationLoss', loss_weight='auto'),
        neck=dict(type='PKDLoss', loss_weight='auto')))
