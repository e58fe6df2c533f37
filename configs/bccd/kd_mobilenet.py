# MobileNetV2 learns from a ResNet: mostly by features, and without inherited weights, which hurt this student. Both were
# chosen on a validation split (configs/compare/bccd_other_backbone_choice.yaml).
_base_ = ['./mobilenet_student.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::bccd/teacher.py',
        checkpoint='data/bccd/teacher_atss_r18_narrow.pth'),
    distill=dict(
        cls=dict(type='DistillationLoss', loss_weight='auto'),
        box=dict(type='BoxIoULoss', loss_weight='auto'),
        quality=dict(type='QualityLoss', loss_weight='auto'),
        neck=dict(type='PKDLoss', loss_weight='auto', share=8.0)))
