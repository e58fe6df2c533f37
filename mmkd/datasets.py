"""Unwrap data sets, read their class names, and take a fraction of them for quick trials."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations

from mmkd.errors import UserError
from mmkd.registry import DATASETS, TRANSFORMS, is_kind

# Where the wrappers of mmengine and mmdet (repeat, join, balance, mix) store the data sets below them.
_BELOW = ("dataset", "datasets")


def below(dataset: Mapping[str, Any]) -> list[Any]:
    """The configs of the data sets directly below a wrapper; empty for other data sets."""
    parts = [dataset.get(name) for name in _BELOW]
    return [
        one
        for part in parts
        if isinstance(part, (Mapping, list, tuple))
        for one in ([part] if isinstance(part, Mapping) else part)
    ]


def places_of(parent: Any, key: Any = "dataset") -> Iterator[tuple[Any, Any]]:
    """The innermost data set configs below wrappers, each as its container and its key in there.

    Args:
        parent: a data loader's config, a wrapper's, or a list of data sets.
        key: the data set's key in it.
    """
    dataset = parent.get(key) if isinstance(parent, Mapping) else parent[key]
    if not isinstance(dataset, Mapping):
        return
    below = [
        (name, dataset[name]) for name in _BELOW if isinstance(dataset.get(name), (Mapping, list, tuple))
    ]
    for name, part in below:
        if isinstance(part, Mapping):
            yield from places_of(dataset, name)
        else:
            for position in range(len(part)):
                yield from places_of(part, position)
    if not below:
        yield parent, key


def innermost(dataset: Any) -> Iterator[Any]:
    """The configs of the data sets below wrappers, in order."""
    for parent, key in places_of({"dataset": dataset}):
        yield parent[key]


def images_below(dataset: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Each image of a built data set, whatever its wrappers do: the data set that lists it, and its info."""
    parts = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    if parts == [None]:
        yield from ((dataset, dataset.get_data_info(number)) for number in range(len(dataset)))
    else:
        for part in parts:
            yield from images_below(part)


def without_annotations(pipeline: Sequence[Any]) -> list[Any]:
    """The configs of transforms that an image alone can go through: all but those that read annotations."""
    return [one for one in pipeline if not is_kind(one, LoadAnnotations, registry=TRANSFORMS)]


def without_workers(loader: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a data loader's config that loads in this process."""
    of_workers = ("prefetch_factor", "multiprocessing_context", "timeout")
    kept = {name: copy.deepcopy(value) for name, value in loader.items() if name not in of_workers}
    return {**kept, "num_workers": 0, "persistent_workers": False}


def annotation_file(dataset: Mapping[str, Any]) -> Path | None:
    """The annotation file in a data set's config; ``None`` if it is not on a local disk."""
    root, file = str(dataset.get("data_root") or ""), str(dataset.get("ann_file") or "")
    return None if not file or "://" in root + file or is_remote(dataset) else Path(root, file)


def is_remote(cfg: Mapping[str, Any]) -> bool:
    """Whether a config's ``backend_args`` read from somewhere other than a local disk."""
    backend = (cfg.get("backend_args") or {}).get("backend", "local")
    return backend not in ("local", "disk")


def where_from(path: Path) -> str:
    """The remedy for a missing data file.

    Args:
        path: the file's path, as in the config.
    """
    parts = path.parts
    for names, remedy in (
        (("data", "bccd"), "run this in a clone of mmkd, which includes data/bccd"),
        (("data", "cards"), "run this in a clone of mmkd, which includes data/cards"),
        (("data", "coco"), "download COCO from https://cocodataset.org/#download to data/coco"),
    ):
        if any(parts[place : place + 2] == names for place in range(len(parts))):
            return remedy
    return f"put it at {path}"


def metric_configs(evaluator: Any) -> list[Any]:
    """The metrics in an evaluator's config, in any of mmengine's three forms.

    Args:
        evaluator: a metric's config, a list of them, a dict with a list of ``metrics``, or ``None``.
    """
    if isinstance(evaluator, Mapping) and "metrics" in evaluator:
        evaluator = evaluator["metrics"]
    return list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator] if evaluator else []


def class_names(metainfo: Any) -> tuple[str, ...] | None:
    """The class names in the metainfo of a data set or checkpoint.

    Args:
        metainfo: a dict; a list of them, as in mmdet's ``ConcatDataset`` when its parts differ, where
            unlabelled parts may have no names; or ``None``.

    Raises:
        UserError: the parts have different classes.

    Example:
        >>> class_names({"classes": ["cat", "dog"], "palette": None})
        ('cat', 'dog')
    """
    if isinstance(metainfo, Sequence) and not isinstance(metainfo, str):
        found = [names for names in map(class_names, metainfo) if names is not None]
        other = next((names for names in found if names != found[0]), found[0] if found else None)
        if found and other != found[0]:
            raise UserError(
                "The concatenated data sets have different classes.",
                expected=f"the classes of the first, {_listed(found[0])}",
                found=_listed(other),
                remedy="give all of them the same metainfo=dict(classes=…), in the same order",
            )
        return other
    names = None
    if isinstance(metainfo, Mapping):
        names = metainfo.get("classes", metainfo.get("CLASSES"))
    return (names,) if isinstance(names, str) else None if names is None else tuple(names)


def common_metainfo(metainfo: Any, names: Sequence[str] | None) -> dict[str, Any]:
    """The metainfo on which all parts of a data set agree, as one dict that mmdet's tools can read.

    Args:
        metainfo: a dict, or a list of them for a data set of several parts.
        names: the data set's classes, if known.
    """
    parts = metainfo if isinstance(metainfo, (list, tuple)) else [metainfo or {}]
    common = {k: v for k, v in parts[0].items() if all(k in part and part[k] == v for part in parts)}
    return common if names is None else {**common, "classes": tuple(names)}


def _listed(names: Sequence[str] | None) -> str:
    return "no names" if names is None else ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


@DATASETS.register_module(name="FractionOfDataset")
def fraction_of_dataset(dataset: dict[str, Any], fraction: float) -> Any:
    """Build a data set and keep evenly spaced samples.

    Args:
        dataset: config of a data set based on mmengine's `BaseDataset`.
        fraction: in (0, 1); at least one sample is kept.

    Returns:
        The data set itself, shortened.

    Raises:
        UserError: the fraction is out of range.
    """
    if not 0 < fraction < 1:
        raise UserError(
            "`indices` as a fraction of a data set is out of range.",
            expected="a number between 0 and 1, or a whole number of samples",
            found=str(fraction),
            remedy="for example train_dataloader.dataset.indices=0.1",
        )
    built = DATASETS.build(dataset)
    kept = max(1, round(fraction * len(built)))
    built.get_subset_(np.linspace(0, len(built) - 1, kept).round().astype(int).tolist())
    return built
