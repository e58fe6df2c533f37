# Playing cards of which a quarter has labels, and the other three quarters without: in each batch two images
# with labels and six without. An epoch is one pass over the labels, and as long as one over all images.
_base_ = ['./cards_quarter_detection.py']

labelled = _base_.train_dataloader.dataset
unlabelled = dict(
    type='UnlabelledImages',
    data_root=_base_.data_root,
    metainfo=_base_.metainfo,
    images='annotations/train.json',
    leave_out='annotations/quarter.json',
    data_prefix=dict(img='images/train/'),
    pipeline=_base_.train_pipeline)

train_dataloader = dict(
    batch_size=8,
    batch_sampler=dict(type='MixedBatchSampler', source_ratio=[1, 3]),
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[labelled, unlabelled]))
