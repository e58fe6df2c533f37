# The student of the demo, distilled: the same student, seed and budget.
_base_ = ['./student.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::bccd/teacher.py',
        checkpoint='data/bccd/teacher_atss_r18_narrow.pth'),
    distill=dict(cls=dict(type='DistillationLoss')))
