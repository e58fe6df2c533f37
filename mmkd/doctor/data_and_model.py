"""Check in the config that data and model match: sample keys, channels, number of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdet.datasets import BaseVideoDataset, CocoPanopticDataset

from mmkd.doctor.annotations import classes_of
from mmkd.doctor.findings import Finding, NotExamined, shortened
from mmkd.doctor.setup import TrainingSetup
from mmkd.registry import DATASETS, TRANSFORMS, accepted_arguments, class_of, is_kind, package_of

# Needed to map a prediction back to its image, and to find that image.
_META_OF_TESTS = ("img_id", "ori_shape", "img_shape", "scale_factor")
# For transforms of these packages, the effect on channels is known.
_STOCK = ("mmcv", "mmdet", "mmengine", "mmkd")
_CHANGE_CHANNELS = ("Albu", "RandomGrayscale")
# Heads that classify something other than the data set's classes, by their name in a model.
_OTHER_CLASSES = ("rpn_head", "semantic_head", "panoptic_head", "panoptic_fusion_head")
# Parts that contain heads: in two-stage and semi-supervised detectors and test-time augmentation.
_WITH_HEADS = ("roi_head", "detector", "module")
# Tracks have their own classes; in panoptic data, object heads only have the thing classes.
_NOT_OF_HEADS = (BaseVideoDataset, CocoPanopticDataset)


def examine_samples(setup: TrainingSetup, which: str, cfg: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the keys that transforms leave in a sample, and the image's number of channels."""
    what, option = f"{which}: pipeline", f"{which}_dataloader.dataset.pipeline"
    transforms = [one for one in cfg.get("pipeline") or () if isinstance(one, Mapping)]
    packs = [one for one in transforms if is_transform(one, "PackDetInputs")]
    for pack in packs:
        keys = pack.get("meta_keys")
        wanted = ("img_shape",) if which == "train" else _META_OF_TESTS
        if keys is None:
            continue
        # CenterNet and CornerNet pad images with a border instead of resizing them.
        lacking = [
            key for key in wanted if key not in keys and not (key == "scale_factor" and "border" in keys)
        ]
        if lacking:
            yield Finding.error(
                what,
                f"PackDetInputs.meta_keys lacks {', '.join(lacking)}, required by the detector",
                f"add it in {option}",
            )
    yield from _channels(setup, what, transforms)


def _channels(setup: TrainingSetup, what: str, transforms: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Check that images have the channels that preprocessor and backbone expect, as far as is known."""
    model = setup.cfg.get("model") or {}
    preprocessor = model.get("data_preprocessor") or setup.cfg.get("data_preprocessor") or {}
    mean = preprocessor.get("mean")
    values = len(mean) if isinstance(mean, (list, tuple)) else 0
    if values not in (0, 1, 3) and package_of(class_of(preprocessor)) in _STOCK:
        yield Finding.error(
            what,
            f"data_preprocessor.mean has {values} values; {class_of(preprocessor).__name__} takes 1 or 3",
            "for other images, give mean and std one value per channel",
        )
        return
    loads = [one for one in transforms if is_transform(one, "LoadImageFromFile")]
    kinds = [class_of(one, TRANSFORMS) for one in transforms]
    if (
        not loads
        or any(one.get("color_type", "color") not in ("color", "grayscale") for one in loads)
        or any(package_of(kind) not in _STOCK or kind.__name__ in _CHANGE_CHANNELS for kind in kinds)
    ):
        return
    channels = 1 if any(one.get("color_type") == "grayscale" for one in loads) else 3
    if values == 3 != channels:
        yield Finding.error(
            what,
            "images are loaded with 1 channel (color_type='grayscale'); data_preprocessor.mean has 3 values",
            "give mean and std one value each and set in_channels=1 in the backbone, or load colour images",
        )
        return
    backbone = model.get("backbone") or {}
    kind = class_of(backbone)
    argument = accepted_arguments(kind)[0].get("in_channels")
    usual = argument.default if argument is not None and isinstance(argument.default, int) else 3
    takes_any = argument is not None
    width = backbone.get("in_channels", usual)
    if package_of(kind) == "mmdet" and width != channels:
        yield Finding.error(
            what,
            f"images are loaded with {channels} channel{'s' * (channels > 1)}, "
            f"and {kind.__name__} takes {width}",
            f"set model.backbone.in_channels={channels}, or color_type of LoadImageFromFile"
            if takes_any
            else "set color_type='color' of LoadImageFromFile, and three values of mean and std",
        )


def examine_heads(setup: TrainingSetup, which: Sequence[str]) -> Iterator[Finding]:
    """Check that heads and data sets have the same number of classes."""
    names = next((found for name in which for found in named_classes(setup, name)), ())
    if not names:
        raise NotExamined("the data set's config names no classes")
    if (setup.cfg.get("model") or {}).get("language_model"):
        raise NotExamined("the head is text-conditioned")
    strange = any(source.has_none for name in which for source in setup.sources.get(name, ()))
    for place, count in heads_of(setup.cfg.get("model") or {}):
        told = f"{place}.num_classes is {count if isinstance(count, int) else repr(count)}"
        if count is None:
            told = f"{place} has no num_classes"
        if count != len(names) or not isinstance(count, int):
            yield Finding.error(
                "head: classes",
                f"{told}; the data set has {len(names)}: {shortened(names)}",
                "first correct metainfo.classes, see above"
                if strange
                else f"set {place}.num_classes={len(names)}, or correct metainfo.classes",
            )


def named_classes(setup: TrainingSetup, which: str) -> list[tuple[str, ...]]:
    """The class names of each part of a data set, except those whose heads have other classes."""
    parts = [one for one in setup.parts(which) if not is_kind(one, *_NOT_OF_HEADS, registry=DATASETS)]
    return [names for part in parts if (names := classes_of(part))]


def heads_of(model: Mapping[str, Any], place: str = "model") -> Iterator[tuple[str, Any]]:
    """The heads in a model's config that classify objects: place and number of classes.

    The number is as in the config, so it may be invalid; ``None`` if a head needs one and has none.
    """
    for name, part in model.items():
        if name in _OTHER_CLASSES:
            continue
        for index, one in enumerate(part if isinstance(part, (list, tuple)) else [part]):
            if not isinstance(one, Mapping):
                continue
            here = f"{place}.{name}" + (f"[{index}]" if isinstance(part, (list, tuple)) else "")
            if name in _WITH_HEADS:
                yield from heads_of(one, here)
            elif name.endswith("_head"):
                argument = accepted_arguments(class_of(one))[0].get("num_classes")
                if "num_classes" in one:
                    yield here, one["num_classes"]
                elif argument is not None and argument.default is not None:
                    yield here, None if argument.default is argument.empty else argument.default


def is_transform(cfg: Mapping[str, Any], name: str) -> bool:
    """Whether a config's transform is of this name, or a subclass of it."""
    return is_kind(cfg, TRANSFORMS.get(name), registry=TRANSFORMS)
