# The student begins with its teacher's neck and head, and is distilled by boxes as well.
_base_ = ['./boxes_atss_r50_r101_1x_coco.py']

model = dict(inherit=['neck', 'bbox_head'])
