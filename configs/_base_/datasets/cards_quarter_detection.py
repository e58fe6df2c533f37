# Playing cards of which a quarter has labels: 61 images.
_base_ = ['./cards_detection.py']

train_dataloader = dict(dataset=dict(ann_file='annotations/quarter.json'))
