# RetinaNet learns from ATSS by CrossKD and features: what --teacher chooses for heads of different types. RetinaNet has nine
# anchors at each place, ATSS one; the losses compare what the teacher's head makes of both.
_base_ = ['./retinanet_student.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::bccd/teacher.py',
        checkpoint='data/bccd/teacher_atss_r18_narrow.pth'),
    inherit=['neck', 'bbox_head'],
    distill=dict(
        cross=dict(
            type='CrossKDLoss',
            loss_weight='auto',
            losses=dict(
                cls=dict(type='BCKDLoss', normalizer='batch'),
                box=dict(type='BoxIoULoss', region='teacher'),
                quality=dict(type='QualityLoss', region='teacher'))),
        neck=dict(type='PKDLoss', loss_weight='auto', share=2.0)))
