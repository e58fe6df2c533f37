# The narrow Faster R-CNN at longest side 160, distilled as on BCCD.
_base_ = ['./faster_rcnn_student_160.py']

model = dict(
    type='KDDetector',
    student='FasterRCNN',
    teacher=dict(
        config='mmkd::cards/faster_rcnn_teacher_160.py',
        checkpoint='work_dirs/faster_rcnn_teacher_160/epoch_60.pth'),
    inherit=['neck', 'rpn_head', 'roi_head'],
    distill=dict(
        cls=dict(type='DistillationLoss', activation='softmax', region='all'),
        box=dict(type='BoxIoULoss'),
        neck=dict(type='PKDLoss', loss_weight=0.3)))
