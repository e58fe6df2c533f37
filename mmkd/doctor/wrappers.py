"""Check data set wrappers (repeat, concatenate, balance): buildable and consistent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.dataset import ClassBalancedDataset, ConcatDataset

from mmkd.datasets import below
from mmkd.doctor.findings import Finding
from mmkd.errors import type_of
from mmkd.registry import DATASETS, class_of, is_kind


def examine_wrappers(which: str, dataset: Any) -> Iterator[Finding]:
    """Check what mmdet's wrappers require from the data sets below them.

    Args:
        which: ``train``, ``val`` or ``test``.
        dataset: the data set's config.
    """
    what = f"{which}: data set"
    if not isinstance(dataset, Mapping):
        return
    parts = below(dataset)
    for part in parts:
        yield from examine_wrappers(which, part)
    kind = class_of(dataset, DATASETS)
    if is_kind(dataset, ClassBalancedDataset, registry=DATASETS):
        for part in parts:
            inner = class_of(part, DATASETS)
            if isinstance(inner, type) and not hasattr(inner, "get_cat_ids"):
                yield Finding.error(
                    what,
                    f"{kind.__name__} cannot determine the classes of {inner.__name__}",
                    f"wrap each of its data sets in a {kind.__name__}",
                )
    if not is_kind(dataset, ConcatDataset, registry=DATASETS):
        return
    if not parts:
        yield Finding.error(what, f"{type_of(dataset)} has no datasets", "add at least one")
        return
    ignored = dataset.get("ignore_keys") or []
    ignored = [ignored] if isinstance(ignored, str) else ignored
    metainfos = [
        {key: value for key, value in _metainfo(part).items() if key not in ignored} for part in parts
    ]
    first = metainfos[0]
    lacking = sorted({key for metainfo in metainfos for key in metainfo} - set(first))
    differing = sorted(
        key
        for key in first
        if key != "classes" and any(metainfo.get(key) != first[key] for metainfo in metainfos)
    )
    if lacking:
        yield Finding.error(
            what,
            f"the first concatenated data set has no metainfo.{lacking[0]}, which mmdet reads there",
            f"add it, or set {type_of(dataset)}.ignore_keys={lacking}",
        )
    elif differing and which != "train":
        yield Finding.error(
            what,
            f"its data sets differ in metainfo.{differing[0]}, but evaluators use one metainfo for all",
            f"use the same value, or set {type_of(dataset)}.ignore_keys={differing}",
        )


def _metainfo(dataset: Any) -> dict[str, Any]:
    """A data set's meta information from its config; for a wrapper, that of its first part."""
    while isinstance(dataset, Mapping) and below(dataset):
        dataset = below(dataset)[0]
    given = dataset.get("metainfo")
    own = getattr(class_of(dataset, DATASETS), "METAINFO", None) or {}
    return {**own, **(given if isinstance(given, Mapping) else {})}
