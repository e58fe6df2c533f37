# Labels for a quarter of the images, and for all of them what a Faster R-CNN of torchvision predicts, which was trained
# on that quarter:
#   python examples/train_torchvision.py data/txl-pbc/annotations/quarter.json data/txl-pbc/images/train \
#       --backbone weights/mobilenet_v2_imagenet_mmdet.pth --size 192 --epochs 16 --out work_dirs/torchvision.json
_base_ = ['./kd_unlabelled.py']

model = dict(
    inherit=[],
    teacher=dict(_delete_=True, predictions='work_dirs/torchvision.json'),
    # 2 of 8 images have labels: with weight 4, as in Soft Teacher's recipe, they do not count four times as much.
    distill=dict(_delete_=True, boxes=dict(type='TeacherBoxesLoss', loss_weight=4.0)))
