# YOLOv3: DarkNet-53 teacher, MobileNetV2 student, COCO.
_base_ = ['mmdet::yolo/yolov3_mobilenetv2_8xb24-ms-416-300e_coco.py']
custom_imports = dict(imports=['mmkd'])

model = dict(
    type='KDSingleStageDetector',
    # The teacher's anchors, so that its priors are the student's.
    bbox_head=dict(
        anchor_generator=dict(
            base_sizes=[[(116, 90), (156, 198), (373, 326)],
                        [(30, 61), (62, 45), (59, 119)],
                        [(10, 13), (16, 30), (33, 23)]])),
    teacher=dict(
        config='mmdet::yolo/yolov3_d53_8xb8-ms-416-273e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/yolo/'
        'yolov3_d53_mstrain-416_273e_coco/'
        'yolov3_d53_mstrain-416_273e_coco-2b60fcd9.pth'),
    distill=dict(
        cls=dict(type='DistillationLoss'),
        box=dict(type='BoxIoULoss', region='foreground'),
        quality=dict(type='QualityLoss')))

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='MetricsFileHook')]
