# The teacher of the cards, trained on the quarter of them that has labels.
_base_ = ['./teacher.py']

train_dataloader = dict(dataset=dict(ann_file='annotations/quarter.json'))
