# Class logits, decoded boxes, centerness and features, with weights set by hand; neck and head begin with
# the teacher's weights. At longest side 160.
_base_ = ['./student_160.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::cards/teacher_160.py',
        checkpoint='work_dirs/cards_160_teacher/epoch_60.pth'),
    inherit=['neck', 'bbox_head'],
    distill=dict(
        cls=dict(type='DistillationLoss'),
        box=dict(type='BoxIoULoss'),
        quality=dict(type='QualityLoss'),
        neck=dict(type='PKDLoss', loss_weight=0.3)))
