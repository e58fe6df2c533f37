# ATSS: ResNet-101 teacher, ResNet-34 student, COCO, 1x.
_base_ = ['./kd_atss_r50_r101_1x_coco.py']

model = dict(
    backbone=dict(
        depth=34,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet34')),
    neck=dict(in_channels=[64, 128, 256, 512]))
