# The same, and the neck's features resemble the teacher's: the recipe that we recommend.
_base_ = ['./kd_inherit.py']

model = dict(distill=dict(neck=dict(type='PKDLoss', loss_weight=0.3)))
