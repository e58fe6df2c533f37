from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmkd.cli import doctor

from ..conftest import ROOT

CONFIG = "configs/bccd/kd.py"


@pytest.mark.slow
def test_the_shipped_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.json"
    arguments = ["--images", "4", "--json", str(file), "--html", str(file.with_suffix(".html"))]
    arguments += ["--work-dir", str(tmp_path / "work")]
    assert doctor.main([CONFIG, *arguments]) == 0
    text = capsys.readouterr().out
    assert text.rstrip().endswith("0 errors, 0 warnings: ready to train")
    assert "detected objects have the right class" in text
    data = json.loads(file.read_text())
    assert (data["errors"], data["warnings"]) == (0, 0)
    assert [section["title"] for section in data["sections"]] == [
        "environment",
        "dataset",
        "pipeline",
        "teacher",
        "training step",
        "memory",
        "validation",
        "not checked",
    ]
    assert "<b>ready to train</b>" in file.with_suffix(".html").read_text(encoding="utf-8")
    assert not (tmp_path / "work").exists()
    assert without_numbers(text) == without_numbers(page_of_the_documentation())


def page_of_the_documentation() -> str:
    """The sample in docs/doctor.md."""
    return (
        (ROOT / "docs/doctor.md")
        .read_text(encoding="utf-8")
        .split("```text\nmmkd doctor: ")[1]
        .split("```")[0]
    )


def without_numbers(page: str) -> list[str]:
    """The findings of a page without versions, devices, and how much was measured."""
    words = " ".join(page.split()).partition("dataset (")[2]
    return re.sub(r"[\d.]+( [GM]B)?( free)?|free memory unknown", "#", words).split()


def test_all_goes_on_after_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(Path("data/bccd/teacher_atss_r18_narrow.pth").read_bytes()[:10_000])
    (tmp_path / "file").write_text("")
    damages = [f"model.teacher.checkpoint={truncated}", "val_dataloader.dataset.ann_file=nothere.json"]
    assert doctor.main([CONFIG, "--work-dir", str(tmp_path / "file/work"), "--cfg-options", *damages]) == 1
    text = " ".join(capsys.readouterr().out.split())
    for finding in (
        f"cannot write to {tmp_path / 'file/work'}: Not a directory",
        "no file data/bccd/nothere.json",
        "Expected: a file written by torch.save",
        "teacher and student not checked: a teacher cannot be loaded",
        "memory not checked: no training step was run",
    ):
        assert finding in text


@pytest.mark.parametrize("arguments", [["nothere.py"], [CONFIG, "--teacher", "a"]])
def test_cannot_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(arguments) == 2
    assert "mmkd: error: " in capsys.readouterr().err


def test_no_images(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        doctor.main([CONFIG, "--images", "0"])
    assert "--images: must be at least 1, found 0" in capsys.readouterr().err


def test_the_folders_of_the_pages_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: [])
    files = {option: tmp_path / f"{option[2:]}/page" for option in ("--json", "--html")}
    words = [word for option, file in files.items() for word in (option, str(file))]
    assert doctor.main([CONFIG, *words]) == 0
    assert all(file.is_file() for file in files.values())
