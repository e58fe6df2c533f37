# MobileNetV2 learns from a ResNet.
_base_ = ['./mobilenet_student.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::bccd/teacher.py',
        checkpoint='data/bccd/teacher_atss_r18_narrow.pth'),
    inherit=['neck', 'bbox_head'],
    distill=dict(
        cls=dict(type='DistillationLoss'),
        box=dict(type='BoxIoULoss'),
        quality=dict(type='QualityLoss'),
        neck=dict(type='PKDLoss', loss_weight=0.3)))
