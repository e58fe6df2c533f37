# The student alone on the quarter of the images that has labels: 40 epochs of 32 batches, as many steps as 10 epochs
# of all images have.
_base_ = ['./student.py']

train_dataloader = dict(dataset=dict(ann_file='annotations/quarter.json'))
max_epochs = 40
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True)
]
