"""Whether data and model go together by their config: keys of a sample, channels, classes of heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmkd.doctor.annotations import classes_of
from mmkd.doctor.findings import Finding, NotExamined, shortened
from mmkd.doctor.setup import TrainingSetup
from mmkd.registry import TRANSFORMS, accepted_arguments, class_of, is_kind, package_of

# What a prediction is turned back into an image's coordinates by, and found again by.
_META_OF_TESTS = ("img_id", "ori_shape", "img_shape", "scale_factor")
# Of these packages it is known what a transform does to channels.
_STOCK = ("mmcv", "mmdet", "mmengine", "mmkd")
_CHANGE_CHANNELS = ("Albu", "RandomGrayscale")
# Heads that classify something else than the data set's classes, by the name that they have in a model.
_OTHER_CLASSES = ("rpn_head", "semantic_head", "panoptic_head", "panoptic_fusion_head")


def examine_samples(setup: TrainingSetup, which: str, cfg: Mapping[str, Any]) -> Iterator[Finding]:
    """What the transforms leave in a sample, and how many channels its image has."""
    what, option = f"{which}: pipeline", f"{which}_dataloader.dataset.pipeline"
    transforms = [one for one in cfg.get("pipeline") or () if isinstance(one, Mapping)]
    packs = [one for one in transforms if is_transform(one, "PackDetInputs")]
    for pack in packs:
        keys = pack.get("meta_keys")
        wanted = ("img_shape",) if which == "train" else _META_OF_TESTS
        lacking = [] if keys is None else [key for key in wanted if key not in keys]
        if lacking:
            yield Finding(
                "error",
                what,
                f"PackDetInputs.meta_keys lacks {', '.join(lacking)}, which the detector reads",
                f"add it in {option}",
            )
    yield from _channels(setup, what, transforms)


def _channels(setup: TrainingSetup, what: str, transforms: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Whether images have as many channels as preprocessor and backbone take, where transforms tell it."""
    model = setup.cfg.get("model") or {}
    preprocessor = model.get("data_preprocessor") or setup.cfg.get("data_preprocessor") or {}
    mean = preprocessor.get("mean")
    values = len(mean) if isinstance(mean, (list, tuple)) else 0
    if values not in (0, 1, 3) and package_of(class_of(preprocessor)) in _STOCK:
        yield Finding(
            "error",
            what,
            f"data_preprocessor.mean has {values} values; {class_of(preprocessor).__name__} takes 1 or 3",
            "give mean and std one value each for images of another kind",
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
        yield Finding(
            "error",
            what,
            "images are loaded with 1 channel (color_type='grayscale'); data_preprocessor.mean has 3 values",
            "give mean and std one value each, and the backbone in_channels=1; or load colours",
        )
        return
    backbone = model.get("backbone") or {}
    kind = class_of(backbone)
    takes_any = "in_channels" in accepted_arguments(kind)[0]
    width = backbone.get("in_channels", _default(kind, "in_channels") or 3)
    if package_of(kind) == "mmdet" and width != channels:
        yield Finding(
            "error",
            what,
            f"images are loaded with {channels} channel{'s' * (channels > 1)}, "
            f"and {kind.__name__} takes {width}",
            f"set model.backbone.in_channels={channels}, or color_type of LoadImageFromFile"
            if takes_any
            else "set color_type='color' of LoadImageFromFile, and three values of mean and std",
        )


def examine_heads(setup: TrainingSetup, which: Sequence[str]) -> Iterator[Finding]:
    """Whether the heads are for as many classes as the data sets have."""
    names = next((names for name in which for part in setup.parts(name) if (names := classes_of(part))), ())
    if not names:
        raise NotExamined("the data set's config names no classes")
    for place, count in heads_of(setup.cfg.get("model") or {}):
        if count != len(names):
            yield Finding(
                "error",
                "head: classes",
                f"{place}.num_classes is {count}; the data set has {len(names)}: {shortened(names)}",
                f"set {place}.num_classes={len(names)}, or correct metainfo.classes",
            )


def heads_of(model: Mapping[str, Any], place: str = "model") -> Iterator[tuple[str, int]]:
    """The heads of a model's config that classify objects: where each stands, and for how many classes."""
    for name, part in model.items():
        if name in _OTHER_CLASSES:
            continue
        for index, one in enumerate(part if isinstance(part, (list, tuple)) else [part]):
            if not isinstance(one, Mapping):
                continue
            here = f"{place}.{name}" + (f"[{index}]" if isinstance(part, (list, tuple)) else "")
            if name == "roi_head":
                yield from heads_of(one, here)
            elif name.endswith("_head"):
                count = one.get("num_classes", _default(class_of(one), "num_classes"))
                if isinstance(count, int):
                    yield here, count


def is_transform(cfg: Mapping[str, Any], name: str) -> bool:
    """Whether a config means the transform of this name, or a subclass of it."""
    return is_kind(cfg, TRANSFORMS.get(name), registry=TRANSFORMS)


def _default(kind: Any, name: str) -> Any:
    """What a class takes for an argument that is not given; ``None`` if it has no such default."""
    argument = accepted_arguments(kind)[0].get(name)
    return None if argument is None or argument.default is argument.empty else argument.default
