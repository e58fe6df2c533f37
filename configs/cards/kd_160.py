# The student at longest side 160, distilled by class logits alone.
_base_ = ['./student_160.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::cards/teacher_160.py',
        checkpoint='work_dirs/cards_160_teacher/epoch_60.pth'),
    distill=dict(cls=dict(type='DistillationLoss')))
