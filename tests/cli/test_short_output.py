"""No tool shows what its libraries print, log and warn of, unless it is verbose."""

from __future__ import annotations

import importlib
import re
import warnings
from pathlib import Path

import pytest
import torch

from mmkd.compat import load_config
from mmkd.project import make_project

from ..conftest import build
from ..project.test_dataset import few

LIBRARIES = re.compile(
    r"- mmengine -|loading annotations|Loads checkpoint|creating index|Average Precision|System environment"
)
WORKERS = [
    f"{part}_dataloader.{option}"
    for part in ("train", "val", "test")
    for option in ("num_workers=0", "persistent_workers=False", "batch_size=1")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a teacher's checkpoint, for two images."""
    folder = tmp_path_factory.mktemp("tools")
    make_project(folder / "own", few(folder / "data", 2))
    cfg = load_config(folder / "own/teacher.py")
    meta = {"cfg": cfg.pretty_text, "dataset_meta": {"classes": cfg.classes}}
    torch.save({"state_dict": build(cfg.model).state_dict(), "meta": meta}, folder / "teacher.pth")
    return folder


TOOLS = {
    "init": "{out} --data {data}",
    "doctor": "{kd} --images 1 --cfg-options {kd_options}",
    "train": "{teacher} --work-dir {out} --cfg-options train_cfg.max_epochs=1 {options}",
    "test": "{teacher} {weights} --work-dir {out} --cfg-options {options}",
    "cache_teacher": "configs/bccd/kd.py --workers 0 --cfg-options model.teacher.cache.dir={out} "
    "train_dataloader.dataset.indices=2",
    "predict": "{teacher} {weights} --data {data}/images/val --out {out}.json --cfg-options {options}",
    "publish": "{weights} {out}.pth",
    "export": "{weights} --onnx {out}.onnx --int8 --calibrate 1 --evaluate --config {teacher}",
    "convert": "{weights} {out}.pth --config {teacher}",
}


def arguments(tool: str, folder: Path, out: Path) -> list[str]:
    weights = str(folder / "teacher.pth")
    words = {
        "data": str(folder / "data"),
        "teacher": str(folder / "own/teacher.py"),
        "kd": str(folder / "own/kd.py"),
        "weights": weights,
        "out": str(out),
        "options": " ".join(WORKERS),
        "kd_options": " ".join([*WORKERS, f"model.teacher.checkpoint={weights}"]),
    }
    return TOOLS[tool].format(**words).split()


@pytest.mark.parametrize(
    "tool", [pytest.param(tool, marks=[pytest.mark.slow] if tool == "export" else []) for tool in TOOLS]
)
def test_libraries_are_hidden(
    tool: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"mmkd.cli.{tool}").main
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        code = main(arguments(tool, folder, tmp_path / "out"))
    printed = capfd.readouterr()
    assert code == (tool == "doctor"), "a teacher with random weights is an error"
    assert not shown
    assert printed.err == ""
    assert not LIBRARIES.search(printed.out)
    assert printed.out.strip()
    assert tool == "doctor" or printed.out.count("\n") < 25


def test_verbose_shows_them(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module("mmkd.cli.predict").main
    assert main([*arguments("predict", folder, tmp_path / "out"), "--verbose"]) == 0
    assert LIBRARIES.search(capfd.readouterr().out)
