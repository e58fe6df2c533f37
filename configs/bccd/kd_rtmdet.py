# The narrow RTMDet, distilled: class logits, boxes and features; neck and head begin with the teacher's weights.
_base_ = ['./rtmdet_student.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::bccd/rtmdet_teacher.py',
        checkpoint='work_dirs/rtmdet_teacher/epoch_20.pth'),
    inherit=['neck', 'bbox_head'],
    distill=dict(
        cls=dict(type='DistillationLoss'),
        box=dict(type='BoxIoULoss'),
        neck=dict(type='PKDLoss', loss_weight=0.3)))
