# The same on the quarter of the cards that has labels, 200 epochs.
_base_ = ['./teacher_imagenet.py']

train_dataloader = dict(dataset=dict(ann_file='annotations/quarter.json'))
max_epochs = 200
train_cfg = dict(max_epochs=max_epochs, val_interval=40)
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
