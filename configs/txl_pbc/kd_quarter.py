# Class logits, boxes, centerness and features, on the quarter that has labels.
_base_ = ['./student_quarter.py']

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::txl_pbc/teacher_quarter.py',
        checkpoint='work_dirs/txl_pbc_teacher_quarter/epoch_60.pth'),
    inherit=['neck', 'bbox_head'],
    distill=dict(
        cls=dict(type='DistillationLoss'),
        box=dict(type='BoxIoULoss'),
        quality=dict(type='QualityLoss'),
        neck=dict(type='PKDLoss', loss_weight=0.3)))
