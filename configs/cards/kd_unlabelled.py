# The recommended recipe with labels for a quarter of the cards; the other three quarters come without. In each
# batch two images have labels and six have none; an epoch is one pass over the labels, and as long as one over
# all cards.
_base_ = ['./student.py']

unlabelled = dict(
    type='UnlabelledImages',
    data_root=_base_.data_root,
    metainfo=_base_.metainfo,
    images='annotations/train.json',
    leave_out='annotations/quarter.json',
    data_prefix=dict(img='images/train/'),
    pipeline=_base_.train_pipeline)
labelled = _base_.train_dataloader.dataset
labelled.ann_file = 'annotations/quarter.json'
train_dataloader = dict(
    batch_size=8,
    batch_sampler=dict(type='MixedBatchSampler', source_ratio=[1, 3]),
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[labelled, unlabelled]))

model = dict(
    type='KDSingleStageDetector',
    teacher=dict(
        config='mmkd::cards/teacher_quarter.py',
        checkpoint='work_dirs/cards_teacher_quarter/epoch_60.pth'),
    inherit=['neck', 'bbox_head'],
    distill=dict(
        cls=dict(type='DistillationLoss'),
        box=dict(type='BoxIoULoss'),
        quality=dict(type='QualityLoss'),
        neck=dict(type='PKDLoss', loss_weight=0.3)))
