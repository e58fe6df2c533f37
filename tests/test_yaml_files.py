from __future__ import annotations

from pathlib import Path

import pytest

from mmkd.errors import UserError
from mmkd.yaml_files import read_mapping


def test_a_mapping_in_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for mark in ("", "\ufeff"):
        file.write_text(f"{mark}name: Zähler", encoding="utf-8")
        assert read_mapping(file, "plan", "a file") == {"name": "Zähler"}


@pytest.mark.parametrize("content", ["a: [", "[1, 2]", "", None, b"\xff\xfe\xff"])
def test_anything_else(tmp_path: Path, content: str | bytes | None) -> None:
    file = tmp_path / "a.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="Cannot read plan") as error:
        read_mapping(file, "plan", "a file")
    assert str(file) in str(error.value.found)
