# FCOS learns from ATSS by CrossKD and features, and inherits also the layers that ATSS calls otherwise: class logits and
# centerness mean the same in both heads, box deltas do not. The features' share was chosen on a validation split
# (configs/compare/bccd_other_head_choice.yaml).
_base_ = ['./fcos_student.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::bccd/teacher.py',
        checkpoint='data/bccd/teacher_atss_r18_narrow.pth'),
    inherit={
        'neck': 'neck',
        'bbox_head': 'bbox_head',
        'bbox_head.conv_cls': 'bbox_head.atss_cls',
        'bbox_head.conv_centerness': 'bbox_head.atss_centerness',
    },
    distill=dict(
        cross=dict(
            type='CrossKDLoss',
            loss_weight='auto',
            losses=dict(
                cls=dict(type='BCKDLoss'),
                box=dict(type='BoxIoULoss'),
                quality=dict(type='QualityLoss'))),
        neck=dict(type='PKDLoss', loss_weight='auto', share=2.0)))
