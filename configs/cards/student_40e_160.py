# The student alone on all cards at longest side 160: 40 epochs of 31 batches.
_base_ = ['./student_160.py']

train_dataloader = dict(batch_size=8)
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
