"""Reads prediction files in COCO format, and says which box of which file is wrong.

Shape suffixes: N boxes of all images, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmkd.data.predictions import Floats, Integers, Predictions, beyond
from mmkd.errors import UserError

_REMEDY = "write the file again; mmkd-predict continues where it was interrupted"


def read_predictions(path: str | Path, classes: Sequence[str] | None = None) -> Predictions:
    """Read predictions in COCO format.

    A file contains either ``{"categories": […], "images": […], "annotations": […]}`` like a data set, where
    each annotation has a ``score``; or COCO's list of results, whose items have ``image_id``,
    ``category_id``, ``bbox`` and ``score``, without class names. Each box may have ``scores``, one per class
    in the order of the categories. In a folder, such files are read one by one in the order of their names.

    Args:
        path: a JSON file, or a folder of them.
        classes: class names for a list of results: ``category_id`` 1 is the first, or 0 if any id is 0.

    Raises:
        UserError: it is missing, incomplete or invalid; the message names the file and box.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files or not path.exists():
        raise UserError(
            "The teacher's predictions were not found.",
            expected="a JSON file in COCO format, or a folder of them",
            found=f"{path}: {'no *.json in it' if path.is_dir() else 'no such file'}",
            remedy="correct the path; `mmkd-predict` writes such a file",
        )
    parts = [_read(file, classes) for file in files]
    names = {part.classes for part in parts}
    if len(names) > 1:
        raise UserError(
            f"The files in {path} have different classes.",
            expected="the same classes in the same order in each",
            found=" / ".join(", ".join(part) for part in sorted(names)),
            remedy="use a separate folder for each detector",
        )
    return _joined(parts)


def _joined(parts: Sequence[Predictions]) -> Predictions:
    if len(parts) == 1:
        return parts[0]
    shifts = np.cumsum([0, *(part.starts[-1] for part in parts)])
    vectors = [part.class_scores_NK for part in parts if part.class_scores_NK is not None]
    return Predictions(
        classes=parts[0].classes,
        ids=[x for part in parts for x in part.ids],
        names=[x for part in parts for x in part.names],
        sizes=[x for part in parts for x in part.sizes],
        starts=np.concatenate([*(part.starts[:-1] + at for part, at in zip(parts, shifts)), shifts[-1:]]),
        boxes_N4=np.concatenate([part.boxes_N4 for part in parts]),
        scores_N=np.concatenate([part.scores_N for part in parts]),
        labels_N=np.concatenate([part.labels_N for part in parts]),
        class_scores_NK=np.concatenate(vectors) if len(vectors) == len(parts) else None,
    )


def _read(file: Path, classes: Sequence[str] | None) -> Predictions:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(
            f"Cannot read the teacher's predictions: {file}.",
            expected="JSON in COCO format",
            found=f"{file.stat().st_size} bytes, truncated or not valid JSON: {error}",
            remedy=_REMEDY,
        ) from None
    if isinstance(content, list):
        return _from_results(file, content, classes)
    if not isinstance(content, Mapping) or not {"categories", "images", "annotations"} <= set(content):
        found = sorted(content) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(
            f"{file} contains no predictions.",
            expected='{"categories": […], "images": […], "annotations": […]}, or a list of COCO results',
            found=str(found),
            remedy=_REMEDY,
        )
    categories = {x["id"]: i for i, x in enumerate(content["categories"])}
    names = tuple(str(x["name"]) for x in content["categories"])
    images = content["images"]
    sizes = [
        (int(x["width"]), int(x["height"])) if x.get("width") and x.get("height") else None for x in images
    ]
    return _arrays(
        file,
        content["annotations"],
        names,
        categories,
        ids=[x.get("id") for x in images],
        names=[None if x.get("file_name") is None else str(x["file_name"]) for x in images],
        sizes=sizes,
    )


def _from_results(file: Path, results: Sequence[Any], classes: Sequence[str] | None) -> Predictions:
    if not classes:
        raise UserError(
            f"{file} is a list of results without class names.",
            expected="its class names, in the order of category_id",
            found="none",
            remedy="set them: teacher=dict(predictions=…, classes=['cat', 'dog'])",
        )
    used = {x.get("category_id") for x in results if isinstance(x, Mapping)}
    first = 0 if 0 in used else 1
    categories = {i + first: i for i in range(len(classes))}
    ids = list(dict.fromkeys(x.get("image_id") for x in results if isinstance(x, Mapping)))
    names = [x if isinstance(x, str) else None for x in ids]  # Ultralytics uses names as ids in its results
    return _arrays(file, results, tuple(classes), categories, ids=ids, names=names, sizes=[None] * len(ids))


def _arrays(
    file: Path,
    boxes: Sequence[Any],
    classes: tuple[str, ...],
    categories: Mapping[Any, int],
    *,
    ids: list[Any],
    names: list[str | None],
    sizes: list[tuple[int, int] | None],
) -> Predictions:
    images = {key: i for i, key in enumerate(ids)}
    try:
        image_N = np.array([images[x["image_id"]] for x in boxes], dtype=np.int64)
    except (KeyError, TypeError):
        bad = next(x for x in boxes if not isinstance(x, Mapping) or x.get("image_id") not in images)
        raise _wrong(
            file, bad, "refers to an unlisted image", f"an image_id of {len(ids)} listed images"
        ) from None
    try:
        labels_N = np.array([categories[x["category_id"]] for x in boxes], dtype=np.int32)
    except KeyError:
        bad = next(x for x in boxes if x.get("category_id") not in categories)
        raise _wrong(
            file, bad, "has an unlisted class", f"a category_id of {_listed(categories, classes)}"
        ) from None
    try:
        xywh_N4 = np.array([x["bbox"] for x in boxes], dtype=np.float32).reshape(-1, 4)
        scores_N = np.array([x["score"] for x in boxes], dtype=np.float32)
    except (KeyError, ValueError, TypeError):
        bad = next(x for x in boxes if not _has_numbers(x))
        raise _wrong(file, bad, "lacks a part", 'numbers "bbox": [x, y, width, height] and "score"') from None
    with np.errstate(invalid="ignore"):
        bad_N: Any = ~np.isfinite(xywh_N4).all(1) | (xywh_N4[:, 2:] <= 0).any(1)
        if bad_N.any():
            raise _wrong(file, boxes[int(bad_N.argmax())], "has no area", "a width and height above 0", bad_N)
        bad_N = ~((scores_N >= 0) & (scores_N <= 1))
        if bad_N.any():
            raise _wrong(
                file, boxes[int(bad_N.argmax())], "has no score", "a score from 0 to 1, not a logit", bad_N
            )
    order_N = image_N.argsort(kind="stable")
    starts = np.searchsorted(image_N[order_N], np.arange(len(ids) + 1))
    boxes_N4 = np.concatenate([xywh_N4[:, :2], xywh_N4[:, :2] + xywh_N4[:, 2:]], axis=1)
    _check_within(file, boxes, boxes_N4, image_N, sizes)
    return Predictions(
        classes=classes,
        ids=ids,
        names=names,
        sizes=sizes,
        starts=starts,
        boxes_N4=boxes_N4[order_N],
        scores_N=scores_N[order_N],
        labels_N=labels_N[order_N],
        class_scores_NK=_class_scores(file, boxes, order_N, len(classes)),
    )


def _class_scores(file: Path, boxes: Sequence[Any], order_N: Integers, count: int) -> Floats | None:
    given = [x.get("scores") for x in boxes]
    if not given or any(one is None for one in given):
        return None
    short = next((i for i, one in enumerate(given) if len(one) != count), None)
    if short is not None:
        raise _wrong(
            file, boxes[short], "has the wrong number of class scores", f"{count} scores, one per class"
        )
    scores_NK = np.array(given, dtype=np.float16)
    bad_N: Any = ~((scores_NK >= 0) & (scores_NK <= 1)).all(1)
    if bad_N.any():
        raise _wrong(file, boxes[int(bad_N.argmax())], "has no class scores", "scores from 0 to 1", bad_N)
    ordered_NK: Floats = scores_NK[order_N]
    return ordered_NK


def _check_within(
    file: Path, boxes: Sequence[Any], boxes_N4: Floats, image_N: Integers, sizes: Sequence[Any]
) -> None:
    known = np.array([size or (np.inf, np.inf) for size in sizes], dtype=np.float64).reshape(-1, 2)
    bad_N = beyond(boxes_N4, known[image_N])
    if bad_N.any():
        row = int(bad_N.argmax())
        raise _wrong(
            file,
            boxes[row],
            f"lies outside its image of {sizes[image_N[row]]} px",
            "[x, y, width, height] in pixels of the image file",
            bad_N,
        )


def _has_numbers(box: Any) -> bool:
    try:
        return len([float(x) for x in box["bbox"]]) == 4 and float(box["score"]) is not None
    except (KeyError, ValueError, TypeError):
        return False


def _listed(categories: Mapping[Any, int], classes: Sequence[str]) -> str:
    return ", ".join(f"{key} {classes[i]}" for key, i in list(categories.items())[:10])


def _wrong(file: Path, box: Any, what: str, expected: str, bad_N: Any = None) -> UserError:
    count = (
        ""
        if bad_N is None or bad_N.sum() == 1
        else f"; {bad_N.sum()} of {len(bad_N)} boxes have this problem"
    )
    return UserError(
        f"{file}: a box {what}.",
        expected=expected,
        found=f"{str(box)[:200]}{count}",
        remedy="correct the program that writes the file",
    )
