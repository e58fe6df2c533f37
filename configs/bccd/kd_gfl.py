# Localization distillation: the distributions of the boxes' sides resemble the teacher's.
_base_ = ['./gfl_student.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::bccd/gfl_teacher.py',
        checkpoint='work_dirs/bccd_gfl/teacher/epoch_40.pth'),
    distill=dict(box=dict(type='LocalizationDistillationLoss')))
