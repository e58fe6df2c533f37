"""Write the predictions of Hugging Face's RT-DETR to a file that teaches an MMDetection student.

    pip install transformers
    python examples/teacher_transformers.py data/bccd/images/train --model my_rtdetr/ --out teacher.json

Then set ``teacher=dict(predictions='teacher.json')`` in the student's config; see docs/any-teacher.md.
``--model`` is a folder from `save_pretrained` or a name on the hub, like PekingU/rtdetr_r50vd. RT-DETR needs
no NMS, and each query scores every class. All these scores are written, for losses on class scores.

Shape suffixes: Q queries, M of them kept, K classes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForObjectDetection

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone needs no installation

from mmkd.data import PredictionsWriter, listed_images
from mmkd.teachers import weights_digest


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options and predict the remaining images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("images", help="a folder")
    parser.add_argument("--out", required=True, help="a file ending in .json, or a folder for large sets")
    parser.add_argument("--model", default="PekingU/rtdetr_r50vd", help="a folder, or a name on the hub")
    parser.add_argument("--min-score", type=float, default=0.05, help="drop boxes with a lower score")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    processor = AutoImageProcessor.from_pretrained(options.model)
    model = AutoModelForObjectDetection.from_pretrained(options.model).eval()
    classes = [model.config.id2label[i] for i in range(model.config.num_labels)]
    about = {"model": options.model, "weights": weights_digest(model), "min_score": options.min_score}
    model.to(options.device)
    with PredictionsWriter(options.out, classes, about) as writer:
        for path in tqdm(listed_images(options.images), disable=not sys.stderr.isatty()):
            name = os.path.relpath(path, options.images)
            if name in writer:
                continue
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")  # as MMDetection rotates it
            found = model(**processor(images=image, return_tensors="pt").to(options.device, model.dtype))
            scores_QK = found.logits[0].float().sigmoid().cpu()
            top = scores_QK.max(1)
            kept_Q = top.values >= options.min_score
            center_M2, side_M2 = (
                found.pred_boxes[0].float().cpu()[kept_Q].split(2, 1)
            )  # relative to the image size
            boxes_M4 = torch.cat([center_M2 - side_M2 / 2, center_M2 + side_M2 / 2], 1)
            boxes_M4 = boxes_M4 * torch.tensor([*image.size, *image.size])
            writer.add(name, image.size, boxes_M4, top.values[kept_Q], top.indices[kept_Q], scores_QK[kept_Q])
    print(f"{options.out}: {len(writer)} images")


if __name__ == "__main__":
    main()
