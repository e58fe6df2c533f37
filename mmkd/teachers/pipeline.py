"""Identifies the pixels that a training pipeline produces, beyond a sample's metadata.

A stored answer of the teacher is valid for the same pixels. Size and flip are in the sample's metadata; all
else that a transform does must be the same each time, and is part of the recipe.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmcv.transforms import RandomChoiceResize as McvRandomChoiceResize
from mmcv.transforms import RandomFlip as McvRandomFlip
from mmcv.transforms import Resize as McvResize
from mmcv.transforms.loading import LoadAnnotations as McvLoadAnnotations
from mmdet.datasets.transforms import (
    FilterAnnotations,
    FixShapeResize,
    LoadAnnotations,
    PackDetInputs,
    Pad,
    RandomFlip,
    Resize,
)
from mmengine.dataset import Compose

from mmkd.data import PackTwoViews
from mmkd.errors import UserError

# What of a transform changes the pixels and is not in the metadata.
_OPTIONS: dict[type, tuple[str, ...]] = {
    LoadImageFromFile: ("to_float32", "color_type", "imdecode_backend"),
    McvLoadAnnotations: (),
    LoadAnnotations: (),
    FilterAnnotations: (),
    McvResize: ("interpolation", "backend"),
    Resize: ("interpolation", "backend"),
    FixShapeResize: ("interpolation", "backend"),
    McvRandomChoiceResize: (),
    McvRandomFlip: (),
    RandomFlip: (),
    Pad: ("size", "size_divisor", "pad_to_square", "pad_val", "padding_mode"),
    PackDetInputs: (),
    PackTwoViews: (),  # what follows the teacher's view does not matter
}
_RESIZES = (McvResize, Resize, FixShapeResize, McvRandomChoiceResize)
_FLIPS = (McvRandomFlip, RandomFlip)
_META = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
_FLIP_META = ("flip", "flip_direction")


def base_datasets(dataset: Any, refused: Callable[[str, str], Exception] | None = None) -> list[Any]:
    """The data sets below wrappers that only repeat, join or balance them.

    Args:
        dataset: a built data set.
        refused: makes the error from a wrapper's name and the reason; by default the cache's error.

    Raises:
        UserError: a wrapper mixes images.
    """
    kind = type(dataset).__name__
    if kind in ("RepeatDataset", "ClassBalancedDataset", "SeededDataset"):
        return base_datasets(dataset.dataset, refused)
    if kind == "ConcatDataset":
        return [base for part in dataset.datasets for base in base_datasets(part, refused)]
    if isinstance(getattr(dataset, "pipeline", None), Compose) and not hasattr(dataset, "dataset"):
        return [dataset]
    raise (refused or _refused)(kind, "it mixes images, or its transforms are not accessible")


def recipe_of(dataset: Any) -> str:
    """What a data set's pipeline does to pixels, beyond a sample's metadata.

    Args:
        dataset: a built data set with a pipeline; possibly wrapped.

    Raises:
        UserError: a transform has no exact key, the pipeline resizes twice, the metadata are incomplete, or
            the parts of a data set differ.
    """
    recipes = {_recipe(base.pipeline.transforms) for base in base_datasets(dataset)}
    if len(recipes) > 1:
        raise _refused(
            "ConcatDataset",
            f"the concatenated data sets have different pipelines: {' / '.join(sorted(recipes))}",
        )
    return recipes.pop()


def variants(pipeline: Compose) -> list[Compose]:
    """One deterministic pipeline per possible path through this one."""
    ways = itertools.product(*(list(_ways(transform)) for transform in pipeline.transforms))
    return [Compose(list(way)) for way in ways]


def _recipe(transforms: Sequence[Any]) -> str:
    parts = []
    wanted = set(_META)
    for transform in transforms:
        kind = type(transform)
        if kind not in _OPTIONS:
            raise _refused(kind.__name__, "its changes are not recorded in the sample's metadata")
        source = transform.resize if kind is McvRandomChoiceResize else transform
        if type(source) not in _OPTIONS:
            raise _refused(kind.__name__, f"its resize has type {type(source).__name__}")
        options = [f"{name}={getattr(source, name, None)!r}" for name in _OPTIONS[type(source)]]
        if options or kind in _FLIPS:  # the others do not touch pixels
            parts.append(f"{type(source).__name__}({', '.join(options)})")
    for kinds in (_RESIZES, _FLIPS):
        found = [type(transform).__name__ for transform in transforms if type(transform) in kinds]
        if len(found) > 1:
            raise _refused(found[1], "it appears twice, but the metadata only record the last one")
        if found and kinds is _FLIPS:
            wanted.update(_FLIP_META)
    packs = [transform for transform in transforms if type(transform) in (PackDetInputs, PackTwoViews)]
    lacking = sorted(wanted.difference(*(pack.meta_keys for pack in packs)))
    if lacking:
        raise _refused("PackDetInputs", f"meta_keys lacks {', '.join(lacking)}")
    return " → ".join(parts)


def _ways(transform: Any) -> Iterator[Any]:
    if type(transform) is McvRandomChoiceResize:
        for scale in transform.scales:
            resize = copy.copy(transform.resize)
            resize.scale = scale
            yield resize
    elif type(transform) in _FLIPS:
        directions = transform.direction
        directions = [directions] if isinstance(directions, str) else list(directions)
        probability = transform.prob
        total = sum(probability) if isinstance(probability, list) else probability or 0
        for direction in directions if total else []:
            yield type(transform)(prob=1.0, direction=direction)
        if total < 1:
            yield type(transform)(prob=0.0)
    else:
        yield transform


def _refused(name: str, why: str) -> Exception:
    return UserError(
        f"Cannot cache the teacher: the training pipeline contains {name}, and {why}.",
        expected="only Resize, RandomChoiceResize, RandomFlip and Pad change an image",
        found=name,
        remedy=f"remove {name} from the pipeline, or remove teacher.cache",
    )
