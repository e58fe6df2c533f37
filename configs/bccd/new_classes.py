# A teacher for other classes than it was trained on: its classifier is new and
# trained alone, all else is the trained teacher and stays as it is.
_base_ = ['./teacher.py']

metainfo = dict(classes=('WBC', 'Platelets'))
model = dict(bbox_head=dict(num_classes=2))
# The classifier of another size is left out, and said so in the log.
load_from = 'data/bccd/teacher_atss_r18_narrow.pth'

train_dataloader = dict(dataset=dict(metainfo=metainfo))
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=5, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50)
]
default_hooks = dict(checkpoint=dict(interval=1))
custom_hooks = [
    dict(type='MetricsFileHook'),
    dict(type='TrainOnlyHook', modules=['bbox_head.atss_cls'])
]
