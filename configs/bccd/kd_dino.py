# The narrow DINO, distilled: matched queries of its last layer; all behind the backbone begins with the teacher's weights.
_base_ = ['./dino_student.py']

model = dict(
    type='KDDetector',
    student='DINO',
    teacher=dict(
        config='mmkd::bccd/dino_teacher.py',
        checkpoint='work_dirs/dino_teacher/epoch_15.pth'),
    inherit=['neck', 'encoder', 'decoder', 'bbox_head'],
    distill=dict(
        cls=dict(type='DistillationLoss', region='teacher'),
        box=dict(type='BoxL1Loss'),
        iou=dict(type='BoxIoULoss'),
        neck=dict(type='PKDLoss', loss_weight=0.3)))
