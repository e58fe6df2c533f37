from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.apis import init_detector
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmkd.cli.convert import main

from ..conftest import build, run_tool, tiny_atss, tiny_teacher

CLASSES = ("a", "b", "c")
Weights = dict[str, Any]


def below(prefix: str, weights: Mapping[str, Any]) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def fgd(student: Weights, teacher: Weights) -> Weights:
    """DetectionDistiller: the last features are buffers, the losses have layers."""
    return {
        "student_neck_fpn_convs_4_conv": torch.zeros(2, 4, 3, 3),
        "teacher_neck_fpn_convs_4_conv": torch.zeros(2, 4, 3, 3),
        **below("teacher.", teacher),
        **below("student.", student),
        "distill_losses.loss_fgd_fpn_4.conv_mask_s.weight": torch.zeros(1, 4, 1, 1),
    }


def with_averages(student: Weights, teacher: Weights) -> Weights:
    """The same under mmdet 2.x's EMA hook."""
    averages = {f"ema_student_{key.replace('.', '_')}": value + 1 for key, value in student.items()}
    return {**fgd(student, teacher), **averages}


def razor_1(student: Weights, teacher: Weights) -> Weights:
    generation = {"distiller.connectors.s_fpn0_connector.generation.0.weight": torch.zeros(4, 4, 3, 3)}
    return {**below("architecture.", student), **generation, **below("teacher.", teacher)}


def razor_0(student: Weights, teacher: Weights) -> Weights:
    return {**below("architecture.model.", student), **below("distiller.teacher.", teacher)}


def parallel(student: Weights, teacher: Weights) -> Weights:
    return below("module.", razor_1(student, teacher))


def semi_supervised(student: Weights, teacher: Weights) -> Weights:
    return {**below("student.", student), **below("teacher.", teacher)}


def crosskd(student: Weights, _: Weights) -> Weights:
    """And LD, and mmdet's KnowledgeDistillationSingleStageDetector: the teacher is no module of theirs."""
    return dict(student)


def old_ema(student: Weights, _: Weights) -> Weights:
    return {**student, **{f"ema_{key.replace('.', '_')}": value + 1 for key, value in student.items()}}


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    init_default_scope("mmdet")
    return {"student": build(tiny_atss(), 1), "teacher": build(tiny_teacher(), 2)}


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, str]:
    """Of both networks, as files."""
    for name, model in (("student", tiny_atss()), ("teacher", tiny_teacher())):
        Config({"model": model, "default_scope": "mmdet"}).dump(tmp_path / f"{name}.py")
    return {name: str(tmp_path / f"{name}.py") for name in ("student", "teacher")}


def save(path: Path, layout: Any, networks: dict[str, Any], **meta: Any) -> str:
    weights = layout(*(dict(networks[name].state_dict()) for name in ("student", "teacher")))
    torch.save({"meta": meta, "state_dict": weights, "optimizer": {"lr": 1}}, path)
    return str(path)


@pytest.mark.parametrize("part", ["student", "teacher"])
@pytest.mark.parametrize(
    "layout", [fgd, with_averages, razor_1, razor_0, parallel, semi_supervised, crosskd, old_ema]
)
def test_layouts(
    tmp_path: Path,
    networks: dict[str, Any],
    configs: dict[str, str],
    layout: Any,
    part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = save(tmp_path / "in.pth", layout, networks, CLASSES=CLASSES)
    out = tmp_path / "out.pth"
    code = main([found, str(out), "--config", configs[part], "--part", part])
    said = capsys.readouterr()
    if part == "teacher" and layout in (crosskd, old_ema):
        assert code == 2
        assert "No teacher found in" in said.err
        assert not out.exists()
        return
    assert code == 0, said.err
    written = torch.load(out)
    assert written.keys() == {"meta", "state_dict"}
    assert written["meta"] == {"dataset_meta": {"classes": CLASSES}}
    wanted = networks[part].state_dict()
    assert written["state_dict"].keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in written["state_dict"].items())
    assert f"the {part}'s {len(wanted)} tensors, classes a, b, c" in said.out


def test_what_is_written_is_stock(tmp_path: Path, networks: dict[str, Any], configs: dict[str, str]) -> None:
    found = save(tmp_path / "in.pth", fgd, networks, CLASSES=CLASSES)
    assert main([found, str(tmp_path / "out.pth"), "--config", configs["student"]]) == 0
    model = init_detector(configs["student"], str(tmp_path / "out.pth"), device="cpu", palette="random")
    assert model.dataset_meta["classes"] == CLASSES


def test_what_is_left_out_is_said(
    tmp_path: Path, networks: dict[str, Any], configs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = save(tmp_path / "in.pth", fgd, networks)
    assert main([found, str(tmp_path / "out.pth"), "--config", configs["student"]]) == 0
    teacher = len(networks["teacher"].state_dict())
    said = capsys.readouterr().out
    assert f"left out: {teacher} of teacher., 2 of single tensors, 1 of distill_losses." in said
    assert "no class names" in said


def test_the_wrong_config(
    tmp_path: Path, networks: dict[str, Any], configs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = save(tmp_path / "in.pth", razor_1, networks)
    out = tmp_path / "out.pth"
    assert main([found, str(out), "--config", configs["teacher"]]) == 2
    assert "does not fit the model ATSS" in capsys.readouterr().err
    Config({"model": {"type": "CrossKDATSS"}}).dump(tmp_path / "theirs.py")
    assert main([found, str(out), "--config", str(tmp_path / "theirs.py")]) == 2
    assert "The model of --config is not registered" in capsys.readouterr().err
    assert main([found, str(out), "--config", "configs/none.py"]) == 2
    assert "Cannot read config" in capsys.readouterr().err
    assert not out.exists()


def test_no_student(
    tmp_path: Path, networks: dict[str, Any], configs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = below("teacher.", networks["teacher"].state_dict())
    torch.save({"state_dict": weights}, tmp_path / "in.pth")
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--config", configs["student"]]) == 2
    said = capsys.readouterr().err
    assert "No student found in" in said
    assert "found:    keys starting with teacher." in said


def test_names_of_files(
    tmp_path: Path, networks: dict[str, Any], configs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = save(tmp_path / "in.pth", fgd, networks)
    before = Path(found).read_bytes()
    assert main([found, str(tmp_path / "." / "in.pth"), "--config", configs["student"]]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert Path(found).read_bytes() == before
    assert main([found, str(tmp_path / "x-985f7bd0.pth"), "--config", configs["student"]]) == 2
    assert "implies" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([found, str(tmp_path / "file" / "out.pth"), "--config", configs["student"]]) == 2
    assert main([str(tmp_path / "none.pth"), str(tmp_path / "out.pth"), "--config", configs["student"]]) == 2
    assert "not found" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tmp"))


def test_the_tool() -> None:
    done = run_tool("tools/convert.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--part {student,teacher}" in done.stdout
