"""Train torchvision's Faster R-CNN on a COCO file and write its predictions, to teach a student.

    python examples/train_torchvision.py data/txl-pbc/annotations/quarter.json data/txl-pbc/images/train \
        --backbone weights/mobilenet_v2_imagenet_mmdet.pth --out teacher.json

Then set ``teacher=dict(predictions='teacher.json')`` in the student's config; see docs/any-teacher.md. The
detector learns from the images in the COCO file and predicts all images in the folder. It is torchvision's
`FasterRCNN` with MobileNetV2 and FPN.

Shape suffixes: C channels, H and W size of an image, M boxes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools.coco import COCO
from teacher_torchvision import write_predictions
from torch.utils.data import DataLoader, Dataset
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _mobilenet_extractor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm


class CocoImages(Dataset[Any]):
    """Images with boxes in torchvision's format, flipped at random."""

    def __init__(self, annotations: str, images: str) -> None:
        self.coco, self.images = COCO(annotations), Path(images)
        self.ids = [i for i in self.coco.getImgIds() if self.coco.getAnnIds(i)]
        self.labels = {category: 1 + n for n, category in enumerate(sorted(self.coco.cats))}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        with Image.open(self.images / self.coco.imgs[self.ids[index]]["file_name"]) as file:
            image_CHW = pil_to_tensor(file.convert("RGB")) / 255
        found = self.coco.loadAnns(self.coco.getAnnIds(self.ids[index], iscrowd=False))
        boxes_M4 = torch.tensor([each["bbox"] for each in found], dtype=torch.float32)
        boxes_M4[:, 2:] += boxes_M4[:, :2]
        if torch.rand(()) < 0.5:
            image_CHW = image_CHW.flip(-1)
            boxes_M4[:, [0, 2]] = image_CHW.shape[-1] - boxes_M4[:, [2, 0]]
        return image_CHW, {
            "boxes": boxes_M4,
            "labels": torch.tensor([self.labels[each["category_id"]] for each in found]),
        }


def build(classes: int, backbone: str | None, size: int) -> Any:
    """torchvision's Faster R-CNN with MobileNetV2; ``backbone`` may use mmdet's or torchvision's names."""
    mobilenet = mobilenet_v2(weights=None)
    if backbone is not None:
        weights = torch.load(backbone, map_location="cpu", weights_only=True)
        weights = weights.get("state_dict", weights)
        own = mobilenet.features.state_dict()  # both list the same layers in the same order
        mobilenet.features.load_state_dict(dict(zip(own, weights.values(), strict=False)))
    extractor = _mobilenet_extractor(mobilenet, fpn=True, trainable_layers=6, returned_layers=[2, 3, 4])
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 4)
    return FasterRCNN(
        extractor,
        1 + classes,
        min_size=size,
        max_size=size,
        rpn_anchor_generator=anchors,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=2),
        box_batch_size_per_image=64,
        rpn_post_nms_top_n_train=500,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, save the weights beside the predictions, and predict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("annotations", help="a COCO file")
    parser.add_argument("images", help="the folder of its images, and of those to predict")
    parser.add_argument("--out", required=True, help="a file ending in .json, or a folder for large sets")
    parser.add_argument("--backbone", help="ImageNet weights of MobileNetV2")
    parser.add_argument("--size", type=int, default=320, help="longest side of the images in pixels")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    data = CocoImages(options.annotations, options.images)
    loader = DataLoader(
        data, options.batch_size, shuffle=True, drop_last=True, collate_fn=lambda b: tuple(zip(*b))
    )
    names = [data.coco.cats[category]["name"] for category in data.labels]
    model = build(len(names), options.backbone, options.size).to(options.device).train()
    steps = options.epochs * len(loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, steps)
    for epoch in range(options.epochs):
        for images, targets in tqdm(loader, desc=f"epoch {epoch + 1}", disable=None):
            losses = model(
                [image.to(options.device) for image in images],
                [{key: value.to(options.device) for key, value in target.items()} for target in targets],
            )
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {float(loss):.3f}", flush=True)
    torch.save(model.state_dict(), Path(options.out).with_suffix(".pth"))
    write_predictions(model, names, options.images, options.out, options.device)


if __name__ == "__main__":
    main()
