from __future__ import annotations

from pathlib import Path

import pytest

from mmkd.cli import cache_teacher
from mmkd.errors import UserError

CONFIG = "configs/bccd/kd.py"
FEW = ["train_dataloader.dataset.indices=6", "model.teacher.precision=fp32"]


def fill(folder: Path, *options: str, config: str = CONFIG) -> cache_teacher.CachedTeacher:
    few = ["--workers", "0", "--batch-size", "4", "--cfg-options", f"model.teacher.cache.dir={folder}"]
    return cache_teacher.fill(cache_teacher.parse_args([config, *few, *FEW, *options]))


def test_fills_each_flip_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fill(tmp_path)
    assert (first.read, first.computed) == (0, 24)
    assert first.store is not None
    assert len(first.store) == 24
    second = fill(tmp_path)
    assert (second.read, second.computed) == (24, 0)
    assert "24 of 24 outputs read, 0 computed, in" in capsys.readouterr().out


def test_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    fill(tmp_path, "train_dataloader.dataset.indices=2")
    both = fill(tmp_path, "train_dataloader.dataset.indices=3")
    assert (both.read, both.computed) == (8, 4)


def test_says_how_much_room_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"full after \d+ of 24 views(.|\n)*about .* GB of space(.|\n)*top"):
        fill(tmp_path, "model.teacher.cache.max_gb=1e-4")


def test_without_a_cache_to_fill() -> None:
    for config, found in ((CONFIG, "a teacher without a cache"), ("configs/bccd/student.py", "no teacher")):
        with pytest.raises(UserError, match=f"No teacher cache(.|\\n)*{found}"):
            cache_teacher.fill(cache_teacher.parse_args([config]))


def test_other_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not in the file: Stain; in the file: Platelets, RBC, WBC"):
        fill(tmp_path, "train_dataloader.dataset.metainfo.classes=RBC,WBC,Stain")


def test_as_a_tool(capsys: pytest.CaptureFixture[str]) -> None:
    assert cache_teacher.main([CONFIG]) == 2
    assert "No teacher cache is configured" in capsys.readouterr().err
