# ATSS: ResNet-101 teacher, ResNet-18 student, COCO, 1x.
_base_ = ['./kd_atss_r50_r101_1x_coco.py']

model = dict(
    backbone=dict(
        depth=18,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]))
