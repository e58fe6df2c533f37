# The same, and the student begins with its teacher's neck and head.
_base_ = ['./kd_boxes.py']

model = dict(inherit=['neck', 'bbox_head'])
