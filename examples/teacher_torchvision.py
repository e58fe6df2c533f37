"""Write a torchvision detector's predictions to a file that teaches an MMDetection student.

    pip install torchvision
    python examples/teacher_torchvision.py data/bccd/images/train --out teacher.json \
        --weights detector.pth --classes Platelets RBC WBC

Then set ``teacher=dict(predictions='teacher.json')`` in the student's config; see docs/any-teacher.md.
Without ``--weights``, torchvision's COCO model is downloaded. After an interruption, the same command
continues.

Shape suffixes: C channels, H and W size of an image, M boxes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torchvision.models import get_model, get_model_weights
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone needs no installation

from mmkd.data import PredictionsWriter, listed_images
from mmkd.teachers import weights_digest


def load(name: str, weights: str | None, classes: Sequence[str]) -> tuple[Any, list[str]]:
    """A detector and its class names, without torchvision's class 0, the background."""
    if weights is None:
        known = get_model_weights(name).DEFAULT
        return get_model(name, weights=known), known.meta["categories"][1:]
    model = get_model(name, weights=None, weights_backbone=None, num_classes=1 + len(classes))
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model, list(classes)


@torch.inference_mode()
def write_predictions(
    model: Any, classes: Sequence[str], images: str, out: str, device: str, about: str = "torchvision"
) -> None:
    """Predict the images of a folder that are not yet in the file."""
    described = {"model": about, "weights": weights_digest(model)}
    model.eval().to(device)
    with PredictionsWriter(out, classes, described) as writer:
        for path in tqdm(listed_images(images), disable=not sys.stderr.isatty()):
            name = os.path.relpath(path, images)
            if name in writer:
                continue
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")  # as MMDetection rotates it
            image_CHW = pil_to_tensor(image).to(device) / 255
            (found,) = model([image_CHW])
            boxes_M4, scores_M, labels_M = (found[key].cpu() for key in ("boxes", "scores", "labels"))
            writer.add(name, image.size, boxes_M4, scores_M, labels_M - 1)
    print(f"{out}: {len(writer)} images")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options and predict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("images", help="a folder")
    parser.add_argument("--out", required=True, help="a file ending in .json, or a folder for large sets")
    parser.add_argument(
        "--model", default="fasterrcnn_mobilenet_v3_large_fpn", help="torchvision's name of it"
    )
    parser.add_argument("--weights", help="its state_dict in a file (default: torchvision's, for COCO)")
    parser.add_argument("--classes", nargs="+", default=[], help="names, in the order of --weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    model, classes = load(options.model, options.weights, options.classes)
    write_predictions(model, classes, options.images, options.out, options.device, options.model)


if __name__ == "__main__":
    main()
