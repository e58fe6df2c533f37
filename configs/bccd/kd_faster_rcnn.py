# The narrow Faster R-CNN, distilled: its own regions through the teacher's box head, features. No number is in it, each weight
# sets itself.
_base_ = ['./faster_rcnn_student.py']

model = dict(
    type='KDDetector',
    student='FasterRCNN',
    teacher=dict(
        config='mmkd::bccd/faster_rcnn_teacher.py',
        checkpoint='work_dirs/faster_rcnn_teacher/epoch_20.pth'),
    inherit=['neck', 'rpn_head', 'roi_head'],
    distill=dict(
        cls=dict(
            type='DistillationLoss',
            loss_weight='auto',
            activation='softmax',
            region='all'),
        box=dict(type='BoxIoULoss', loss_weight='auto'),
        neck=dict(type='PKDLoss', loss_weight='auto')))
