# The same with labels for a quarter of the cards; the other three quarters come without. In each batch
# two images have labels and six have none; an epoch is one pass over the labels, and as long as one over all cards.
_base_ = ['./kd_quarter.py']

unlabelled = dict(
    type='UnlabelledImages',
    data_root=_base_.data_root,
    metainfo=_base_.metainfo,
    images='annotations/train.json',
    leave_out='annotations/quarter.json',
    data_prefix=dict(img='images/train/'),
    pipeline=_base_.train_pipeline)
train_dataloader = dict(
    batch_sampler=dict(type='MixedBatchSampler', source_ratio=[1, 3]),
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[_base_.train_dataloader.dataset, unlabelled]))
max_epochs = 40
train_cfg = dict(max_epochs=max_epochs, val_interval=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True)
]
