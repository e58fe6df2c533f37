# The recipe that we recommend: class logits, boxes, centerness, the neck's features and inherited weights. No number is in
# it, each weight sets itself (docs/methods.md, "Automatic weights").
_base_ = ['./kd_inherit.py']

model = dict(
    distill=dict(
        cls=dict(loss_weight='auto'),
        box=dict(loss_weight='auto'),
        quality=dict(loss_weight='auto'),
        neck=dict(type='PKDLoss', loss_weight='auto')))
