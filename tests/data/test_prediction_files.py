"""Predictions in COCO's format, right and wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmkd.data import Predictions, read_predictions
from mmkd.errors import UserError

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def image(number: int, name: str | None = None) -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number}.jpg", "width": 100, "height": 50}


def box(number: int = 1, category: int = 3, **parts: Any) -> dict[str, Any]:
    return {
        "image_id": number,
        "category_id": category,
        "bbox": [10.0, 20.0, 30.0, 20.0],
        "score": 0.8,
        **parts,
    }


def content(*boxes: dict[str, Any], images: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {
        "categories": CATEGORIES,
        "images": images or [image(1), image(2)],
        "annotations": list(boxes),
    }


def read(path: Path, what: Any, classes: list[str] | None = None) -> Predictions:
    file = path / "teacher.json"
    file.write_text(what if isinstance(what, str) else json.dumps(what))
    return read_predictions(file, classes)


def test_a_file_like_a_data_sets(tmp_path: Path) -> None:
    found = read(tmp_path, content(box(2, 7), box(1), box(2, 3, score=0.1)))
    assert found.classes == ("dog", "cat")
    assert len(found) == 2
    first, second = found.of(0), found.of(1)
    np.testing.assert_array_equal(first.boxes_M4, [[10, 20, 40, 40]])
    assert first.labels_M.tolist() == [1]
    assert second.labels_M.tolist() == [0, 1]
    np.testing.assert_allclose(second.scores_M, [0.8, 0.1])
    assert first.class_scores_MK is None
    assert first.size == (100, 50)


def test_scores_of_all_classes(tmp_path: Path) -> None:
    found = read(tmp_path, content(box(scores=[0.25, 0.75]), box(2, scores=[0.5, 0.5])))
    np.testing.assert_array_equal(found.of(0).class_scores_MK, [[0.25, 0.75]])
    partly = read(tmp_path, content(box(scores=[0.25, 0.75]), box(2)))
    assert partly.class_scores_NK is None


@pytest.mark.parametrize("first", [0, 1])
def test_a_list_of_coco_results(tmp_path: Path, first: int) -> None:
    results = [box(5, first + 1), box(9, first)]
    found = read(tmp_path, results, ["dog", "cat"])
    assert [found.find("any.jpg", number) for number in (5, 9, 1)] == [0, 1, None]
    assert found.of(0).labels_M.tolist() == [1]
    assert found.of(1).labels_M.tolist() == [0]
    assert not found.lists_images


def test_a_list_of_results_that_names_images(tmp_path: Path) -> None:
    """As Ultralytics writes it: the name of the file without its end."""
    found = read(tmp_path, [box("cow_3", 1), box("cow_4", 2)], ["dog", "cat"])  # type: ignore[arg-type]
    assert found.find("/data/cow_4.jpg", 17) == 1
    assert found.find("/data/cow_5.jpg", 17) is None


def test_a_folder_of_files(tmp_path: Path) -> None:
    for number in (2, 1):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(content(box(number), images=[image(number)])))
    found = read_predictions(tmp_path)
    assert found.names == ["1.jpg", "2.jpg"]
    assert len(found.of(0).boxes_M4) == len(found.of(1).boxes_M4) == 1


WRONG: dict[str, tuple[Any, str]] = {
    "truncated": (json.dumps(content(box()))[:-20], "Cannot read the teacher's predictions"),
    "empty": ("", "Cannot read the teacher's predictions"),
    "no predictions": ({"a": 1}, "contains no predictions"),
    "a number": ("3", "contains no predictions"),
    "unlisted image": (content(box(3)), "unlisted"),
    "no class": (content(box(1, 4)), "unlisted class"),
    "no score": (content({k: v for k, v in box().items() if k != "score"}), "lacks a part"),
    "short box": (content(box(bbox=[1, 2, 3])), "lacks a part"),
    "NaN score": (content(box(score=float("nan"))), "has no score"),
    "a logit": (content(box(score=3.0)), "has no score"),
    "NaN box": (content(box(bbox=[1, 2, float("nan"), 4])), "has no area"),
    "corners": (content(box(bbox=[60, 20, 50, 40])), "outside its image"),
    "no area": (content(box(bbox=[1, 2, 0, 4])), "has no area"),
    "other classes": (content(box(scores=[0.1, 0.2, 0.7])), "wrong number of class scores"),
    "NaN class score": (content(box(scores=[float("nan"), 0.7])), "has no class scores"),
    "results without classes": ([box()], "without class names"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_clear_error(tmp_path: Path, name: str) -> None:
    what, match = WRONG[name]
    with pytest.raises(UserError, match=match) as error:
        read(tmp_path, what)
    assert error.value.remedy is not None


def test_how_many_are_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 of 3 boxes"):
        read(tmp_path, content(box(score=2), box(), box(score=-1)))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(UserError, match="not found"):
            read_predictions(path)


def test_files_of_other_classes_do_not_mix(tmp_path: Path) -> None:
    for number, categories in enumerate((CATEGORIES, CATEGORIES[::-1])):
        (tmp_path / f"{number}.json").write_text(json.dumps({**content(), "categories": categories}))
    with pytest.raises(UserError, match="different classes"):
        read_predictions(tmp_path)
