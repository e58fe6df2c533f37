"""Check the boxes of an annotation file: finite, non-empty, within their images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmkd.doctor.findings import Finding, shortened

# Rounding may move coordinates past the border.
_TOLERANCE = 1.0
_MANY_OUTSIDE = 0.1


def examine_boxes(which: str, coco: Mapping[str, Any]) -> Iterator[Finding]:
    """Check all boxes of a file.

    Args:
        which: ``train`` or ``val``, for messages.
        coco: the file's content.
    """
    what = f"{which}: boxes"
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    broken: list[Any] = []
    flat: list[Any] = []
    outside: list[Any] = []
    as_corners = strange = 0
    for one in coco["annotations"]:
        box, size = one.get("bbox"), sizes.get(one.get("image_id"))
        if size is None:
            strange += 1
        elif not _is_box(box):
            broken.append(one.get("id"))
        elif box[2] <= 0 or box[3] <= 0:
            flat.append(one.get("id"))
        elif not _within(box[0], box[1], box[0] + box[2], box[1] + box[3], size):
            outside.append(one.get("id"))
            as_corners += (
                _within(box[0], box[1], box[2], box[3], size) and box[2] > box[0] and box[3] > box[1]
            )
    total = len(coco["annotations"])
    if strange:
        yield Finding.error(what, f"{strange} of {total} have an unknown image_id", "fix the file")
    if broken:
        yield Finding.error(
            what, f"{_some(broken, total)} are not four finite numbers", "correct or remove them"
        )
    if flat:
        yield Finding.warning(what, f"{_some(flat, total)} have no area", "mmdet ignores them; correct them")
    if outside:
        likely = as_corners == len(outside) and len(outside) > _MANY_OUTSIDE * total
        yield Finding(
            "error" if len(outside) > _MANY_OUTSIDE * total else "warning",
            what,
            f"{_some(outside, total)} extend beyond their images",
            "they look like x1, y1, x2, y2; COCO boxes are x, y, width, height"
            if likely
            else "correct them; check the images' width and height, and that boxes are in pixels",
        )
    if not (strange or broken or flat or outside):
        yield Finding.ok(what, f"{total}: finite, non-empty, within their images")


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, Sequence)
        and len(box) == 4
        and all(isinstance(x, (int, float)) and math.isfinite(x) for x in box)
    )


def _within(x1: float, y1: float, x2: float, y2: float, size: tuple[float, float]) -> bool:
    inside = min(x1, y1) >= -_TOLERANCE and x2 <= size[0] + _TOLERANCE
    return inside and y2 <= size[1] + _TOLERANCE


def _some(ids: list[Any], total: int) -> str:
    return f"{len(ids)} of {total} (ids {shortened(ids, 5)})"
