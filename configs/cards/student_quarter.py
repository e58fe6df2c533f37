# The student alone, on the quarter of the cards that has labels: 155 epochs of 8 batches, as many steps as 40 epochs
# of all cards have.
_base_ = ['./student_40e_160.py']

train_dataloader = dict(dataset=dict(ann_file='annotations/quarter.json'))
max_epochs = 155
train_cfg = dict(max_epochs=max_epochs, val_interval=31)
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
