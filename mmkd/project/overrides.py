"""Overrides of a model's config: its number of classes, and merging several of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmkd.errors import UserError
from mmkd.project.code import Code


def class_overrides(model: Any, count: int) -> dict[str, Any]:
    """Overrides that change the number of classes of a model's heads."""
    usual = next(_class_counts(model), None)
    if usual is None:
        raise UserError(
            "Cannot set this model's number of classes.",
            expected="a detector whose head has num_classes",
            found=f"none in a {model.get('type')}",
            remedy="choose another --student or --teacher",
        )
    return _with_classes(model, usual, count, "_base_.model")


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as one; where two set the same value, the later one counts."""
    found: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(found.get(key), Mapping) and isinstance(value, Mapping)
            found[key] = merged(found[key], value) if both else value
    return found


def _class_counts(part: Any) -> Iterator[int]:
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key == "num_classes" and isinstance(value, int):
                yield value
            elif key not in ("backbone", "rpn_head", "semantic_head"):
                yield from _class_counts(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from _class_counts(value)


def _with_classes(part: Any, usual: int, count: int, place: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in part.items():
        if key == "num_classes" and value == usual:
            found[key] = count
        elif key in ("backbone", "rpn_head", "semantic_head"):
            continue
        elif isinstance(value, Mapping) and (inner := _with_classes(value, usual, count, f"{place}.{key}")):
            found[key] = inner
        elif isinstance(value, (list, tuple)) and any(usual in _class_counts(each) for each in value):
            found[key] = Code(f"[dict(head, num_classes={count}) for head in {place}.{key}]")
    return found
