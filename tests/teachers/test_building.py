from __future__ import annotations

from typing import Any

import pytest

from mmkd.teachers.building import class_names_of


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"dataset_meta": {"classes": ["a", "b"]}}, ("a", "b")),
        ({"dataset_meta": {"CLASSES": ("a",)}}, ("a",)),
        ({"CLASSES": ("a", "b")}, ("a", "b")),
        ({}, None),
        ({"dataset_meta": None}, None),
    ],
)
def test_class_names_of_either_era(meta: dict[str, Any], names: tuple[str, ...] | None) -> None:
    assert class_names_of(meta) == names
