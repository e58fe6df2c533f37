"""Run a batch through the real data loader and preprocessor, and check the sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from mmkd.datasets import innermost
from mmkd.doctor.findings import Finding, NotExamined, collect
from mmkd.doctor.setup import TrainingSetup
from mmkd.doctor.teacher_pixels import NORMALISATIONS

# The number of training images whose sizes are checked.
_SAMPLES = 16
# Sizes in training and testing may differ by this factor.
FAR = 1.5
# Normalised pixels have about this mean and deviation.
_MEAN, _STD = 3.0, (0.2, 5.0)
# Means and deviations may be rounded differently.
_SAME = 0.5
# Mean, std and channel order that pretrained weights expect, by the prefix of their name.
_PRETRAINED = {
    "torchvision://": NORMALISATIONS["torchvision"],
    "open-mmlab://detectron2/": NORMALISATIONS["Caffe"],
}


def examine_pipeline(setup: TrainingSetup) -> Iterator[Finding]:
    """Check one batch; the scale in training and testing; objects against the head's priors; pixels."""
    yield from collect("batch", _batch, setup)
    yield from collect("pixels", _pretrained, setup)
    yield from collect("scale", _scales, setup)
    yield from collect("objects", _priors, setup)


def _batch(setup: TrainingSetup) -> Iterator[Finding]:
    batch = setup.batch()
    shapes = [tuple(image.shape) for image in batch["inputs"]]
    data = setup.data_preprocessor()(batch, False)  # batch augmentations need training mode, see the step
    inputs, samples = data["inputs"], data["data_samples"]
    objects = sum(len(sample.gt_instances) for sample in samples)
    where = f"{len(shapes)} images, {_sizes(shapes)}; padded {inputs.shape[-1]}×{inputs.shape[-2]}"
    yield Finding.ok("batch", f"{where}; {objects} objects")
    if not objects and not setup.is_unlabelled:
        yield Finding.warning(
            "batch", "no objects in the first batch", "check the training pipeline's filters"
        )
    pixels = torch.cat(
        [image[:, : s.img_shape[0], : s.img_shape[1]].flatten() for image, s in zip(inputs, samples)]
    )
    if not bool(torch.isfinite(pixels).all()):
        yield Finding.error(
            "pixels",
            "some values are not finite after normalisation",
            "correct model.data_preprocessor's std",
        )
        return
    mean, std = float(pixels.mean()), float(pixels.std())
    text = f"mean {mean:.2f}, std {std:.2f}, range {float(pixels.min()):.2f} to {float(pixels.max()):.2f}"
    normalised = bool(getattr(setup.data_preprocessor(), "_enable_normalize", False))
    usual = abs(mean) < _MEAN and _STD[0] < std < _STD[1]
    wide = normalised and bool((setup.data_preprocessor().std == 1).all())  # normal for Caffe weights
    if normalised and not usual and not wide:
        yield Finding.warning(
            "pixels",
            text,
            "far from 0 and 1: mean and std of model.data_preprocessor expect pixels from 0 to 255",
        )
    else:
        yield Finding.ok("pixels", text + ("" if normalised else "; not normalised"))


def _pretrained(setup: TrainingSetup) -> Iterator[Finding]:
    backbone = setup.cfg.model.get("backbone") or {}
    name = str((backbone.get("init_cfg") or {}).get("checkpoint", ""))
    for prefix, (mean, std, swaps) in _PRETRAINED.items():
        if not name.startswith(prefix):
            continue
        own = setup.data_preprocessor()
        found, wanted, same = "no normalisation", _norm(mean, std, swaps), False
        if getattr(own, "_enable_normalize", False):
            means, stds = own.mean.flatten().tolist(), own.std.flatten().tolist()
            found = _norm(means, stds, own._channel_conversion)
            difference = max(abs(a - b) for a, b in zip([*means, *stds], [*mean, *std]))
            same = difference < _SAME and bool(own._channel_conversion) == swaps
        if same:
            yield Finding.ok("pretrained pixels", f"{name} expects pixels with {wanted}")
        else:
            yield Finding.warning(
                "pretrained pixels",
                f"{name} was trained with {wanted}; model.data_preprocessor has {found}",
                f"set model.data_preprocessor to {wanted}",
            )


def _norm(mean: Sequence[float], std: Sequence[float], swaps: bool) -> str:
    means, stds = (", ".join(f"{value:.6g}" for value in values) for values in (mean, std))
    return f"mean=[{means}], std=[{stds}], bgr_to_rgb={bool(swaps)}"


def _scales(setup: TrainingSetup) -> Iterator[Finding]:
    train, val = object_sizes(setup, "train"), object_sizes(setup, "val")
    if not (len(train) and len(val)):
        raise NotExamined("there are no objects")
    ratio = float(train.median() / val.median())
    text = (
        f"median object size is {train.median():.0f} px in training, {val.median():.0f} px in "
        f"validation (up to {_number(setup)} images each)"
    )
    yield Finding.expect(
        1 / FAR < ratio < FAR,
        "scale",
        text,
        "the student is validated at another scale than it is trained at: compare Resize in both pipelines",
    )


def object_sizes(setup: TrainingSetup, which: str) -> Tensor:
    """Object sizes as the network sees them: square roots of areas in pixels, for a few images."""
    dataset = setup.dataset(which)
    sizes: list[Tensor] = []
    for index in range(min(len(dataset), _number(setup))):
        sample = dataset[index]["data_samples"]
        if which == "train":
            boxes = get_box_tensor(sample.gt_instances.bboxes)
        else:  # a test pipeline may load no boxes, or not resize them
            things = dataset.get_data_info(index)["instances"]
            boxes = torch.tensor([thing["bbox"] for thing in things]).reshape(-1, 4)
            boxes = boxes * boxes.new_tensor(sample.get("scale_factor", (1.0, 1.0))).repeat(2)
        sizes.append(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt())
    return torch.cat(sizes) if sizes else torch.zeros(0)


def _number(setup: TrainingSetup) -> int:
    """The maximum number of images whose objects are measured."""
    return min(_SAMPLES, max(4, setup.images))


def _priors(setup: TrainingSetup) -> Iterator[Finding]:
    generator = getattr(getattr(setup.student(), "bbox_head", None), "prior_generator", None)
    if generator is None:
        raise NotExamined("the model has no dense head with a prior generator")
    sizes = object_sizes(setup, "train")
    if not len(sizes):
        raise NotExamined("there are no objects")
    anchors = getattr(generator, "base_anchors", None)
    low, high = (float(sizes.quantile(q)) for q in (0.05, 0.95))
    text = f"90 % of the objects in up to {_number(setup)} images are {low:.0f} to {high:.0f} px; "
    if anchors is not None:
        areas = torch.cat([(a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]) for a in anchors]).sqrt()
        smallest, largest = float(areas.min()), float(areas.max())
        text += f"the anchors are {smallest:.0f} to {largest:.0f} px"
        small, large = sizes < smallest / 4, sizes > 2 * largest
    else:
        strides = [min(stride) for stride in generator.strides]
        text += f"the strides are {min(strides):.0f} to {max(strides):.0f} px"
        small, large = sizes < min(strides), sizes > 32 * max(strides)
    for far, word, remedy in (
        (small, "small", "raise the scale of Resize"),
        (large, "large", "lower the scale of Resize"),
    ):
        if float(far.float().mean()) > 0.5:
            yield Finding.warning(
                "objects",
                f"{text}: {float(far.float().mean()):.0%} are too {word} for the head's priors",
                f"{remedy}, or fit the prior generator to the object sizes",
            )
            return
    yield Finding.ok("objects", text)


def transforms_of(cfg: Mapping[str, Any], which: str) -> list[Any]:
    """The transforms in the config of the first data set below a loader."""
    return list(next(innermost(cfg[f"{which}_dataloader"]["dataset"]))["pipeline"])


def _sizes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(dict.fromkeys(f"{width}×{height}" for _, height, width in shapes))
