"""The benchmarks run; what they measure is in docs/benchmarks.md."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from .conftest import ROOT
from .outputs.queries import tiny
from .outputs.two_stage import FASTER, small

SMALL = ["--student", "configs/bccd/student.py", "--teacher", "configs/bccd/teacher.py", "--size", "64"]


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def run(name: str, monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> Any:
    monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments, "--out", str(out)])
    importlib.import_module(name).main()
    return json.loads(out.read_text())


@pytest.mark.slow
def test_step_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--batch", "2", "--rounds", "2", "--device", "cpu"]
    found = run("step_cost", monkeypatch, tmp_path / "out.json", *SMALL, *few)
    assert found["ratios"]["student alone"] == 1
    idle = "mmkd, every=2, a step without the teacher"
    assert list(found["ratios"])[:4] == ["student alone", "mmkd", idle, "mmkd, cached"], (
        "the recipe comes first"
    )
    logits = {f"mmkd, logits alone{more}" for more in ("", ", cached", ", precision='fp32'")}
    others = {"student alone, again", "mmdet style", "mmkd, the losses alone"}
    others.add("mmkd, a step that measures its automatic weights")
    assert set(found["ratios"]) >= logits | others
    assert all(len(values) == 2 for values in found["seconds"].values())
    assert found["peak_mib"]["mmkd"] > found["peak_mib"]["mmkd, the losses alone"] > 0
    assert found["versions"]["torch"]
    said = capsys.readouterr().out
    assert "| mmkd, cached |" in said
    assert "mmkd: cls DistillationLoss, box BoxIoULoss, quality QualityLoss, neck PKDLoss" in said


@pytest.mark.parametrize("model", [lambda: small(FASTER), lambda: tiny("ConditionalDETR")])
def test_step_cost_of_two_stages_and_queries(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("student", "teacher"):
        Config({"model": model()}).dump(tmp_path / f"{name}.py")
    pair = ["--student", str(tmp_path / "student.py"), "--teacher", str(tmp_path / "teacher.py")]
    few = ["--size", "64", "--rounds", "2", "--device", "cpu", "--clock", "cpu"]
    found = run("step_cost", monkeypatch, tmp_path / "out.json", *pair, *few)
    assert set(found["ratios"]) == {
        "student alone",
        "mmkd, features alone",
        "mmkd",
        "mmkd, every=2, a step without the teacher",
        "mmkd, a step that measures its automatic weights",
        "mmkd, the later heads and the losses alone",
        "student alone, again",
    }


def test_train_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the benchmark's own process; the tools themselves are called by `test_train_cost_of_the_tools`."""
    module = importlib.import_module("train_cost")
    calls: list[str] = []

    def train(tool: Path, config: Path, folder: Path) -> dict[str, float]:
        calls.append(tool.parts[-3])
        cfg = Config.fromfile(config, import_custom_modules=False)
        assert cfg.custom_imports.imports == ["clock"]
        assert [hook.type for hook in cfg.custom_hooks] == ["mmengine.ClockHook"]
        ends = [[1.0, 2.0, 3.0, 4.0, 6.0], [7.0, 8.0, 9.0, 10.0, 12.0]]
        value = module.seconds({"epochs": [0.5, 6.5], "iterations": ends, "end": 12.5})
        return {part: number * (1.1 if tool.parts[-3] == ROOT.name else 1) for part, number in value.items()}

    monkeypatch.setattr(module, "train", train)
    found = run("train_cost", monkeypatch, tmp_path / "out.json", "--rounds", "2")
    assert len(calls) == 6
    assert found["seconds"]["step"][module.MMDET] == [1.5, 1.5]
    assert found["seconds"]["epoch"][module.MMDET] == [6, 6]
    assert found["ratios"]["step"] == {module.MMDET: 1, module.MMKD: pytest.approx(1.1), module.AGAIN: 1}
    assert "| mmkd's tools/train.py | 1.100 × | 1.100 × |" in capsys.readouterr().out


@pytest.mark.slow
def test_train_cost_of_the_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["train_dataloader.dataset.indices=12", "train_dataloader.batch_size=2"]
    few += ["val_dataloader=None", "val_cfg=None", "val_evaluator=None"]
    short = ["--epochs", "1", "--rounds", "1", "--cfg-options", *few]
    found = run("train_cost", monkeypatch, tmp_path / "out.json", *short)
    assert all(0.1 < ratio < 10 for part in found["ratios"].values() for ratio in part.values())


def test_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def result(recipe: str, seed: int | None, ap: float, easy: float) -> dict[str, Any]:
        metrics = {"coco/bbox_mAP": ap, "coco/easy_precision": easy, "coco/hard_precision": ap}
        return {"recipe": recipe, "seed": seed, "metrics": metrics}

    def written(name: str, gains: tuple[float, ...], alone: float) -> str:
        runs = [result("teacher", None, 0.5, 0.5)]
        for seed, gain in enumerate(gains):
            runs.append(result("student", seed, alone, 0.6))
            runs.append(result("kd_features", seed, alone + gain, 0.59))
        roles = {"teacher": "teacher", "student": "student", "kd_features": "distilled"}
        content = {"name": name, "runs": runs}
        content["summary"] = [
            {"recipe": recipe, "role": role, "config": f"{recipe}.py"} for recipe, role in roles.items()
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return str(tmp_path / f"{name}.json")

    monkeypatch.setattr(importlib.import_module("verdicts"), "REPEATS", 3)
    results = [
        written("bccd_sweep", (0.04, 0.041, 0.042), 0.4),
        written("bccd_long", (0.02, 0.021, -0.05), 0.45),
    ]
    probe = {
        "name": "bccd_long",
        "share": 0.1,
        "student": {"forecast": None},
        "variants": [
            {
                "name": "kd_features",
                "verdict": "undecided",
                "difference": {"mean": 0.03},
                "predicted": {"mean": None, "low": 0.0, "high": 0.04},
            }
        ],
    }
    (tmp_path / "verdict.json").write_text(json.dumps(probe))
    arguments = ["--results", *results, "--probes", str(tmp_path / "verdict.json")]
    found = run("verdicts", monkeypatch, tmp_path / "out.json", *arguments)
    # Two seeds that agree speak wrongly of the third; with it they are undecided.
    assert found["left_out"] == {"undecided": 2, "right": 3, "wrong": 1}
    assert found["by_class"]["teacher better"]["pairs"] == 2
    assert found["by_class"]["teacher no better"]["gain"] == pytest.approx(-0.01)
    assert all(row["held"] <= row["forecasts"] <= 3 for row in found["curves"])
    assert found["curves"][3]["held"] >= 2
    (row,) = found["budgets"]
    assert row["predicted"] == pytest.approx(0.041 / 2)
    assert row["found"] == pytest.approx(-0.003)
    (row,) = found["probes"]
    assert (row["verdict"], row["found"]) == ("undecided", pytest.approx(-0.003))
    assert "| bccd_long, 0.1 | kd_features | undecided | +0.030 | –" in capsys.readouterr().out


def test_loss_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("loss_kernels")
    monkeypatch.setattr(module, "SIZES", [(3000, 50)])
    monkeypatch.setattr(module, "OUT", tmp_path / "out.json")
    module.main()
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["activation"] for row in rows] == ["softmax", "sigmoid"]
    assert set(rows[0]["speed"]) >= {"mmkd", "PyTorch", "mmdet"}
    assert capsys.readouterr().out.count("| 3000 | 50 |") == 2


def test_relations(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module("relations")
    monkeypatch.setattr(module, "SIZES", [(60, 5)])
    monkeypatch.setattr(module, "ROUNDS", 2)
    module.main()
    assert "| 60 | 5 | " in capsys.readouterr().out


def test_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("scaling")
    monkeypatch.setattr(module, "POINTS", {"batch": [1, 2], "size": [64, 96], "classes": [1, 3]})
    monkeypatch.setattr(module, "FIXED", {"batch": 1, "size": 64, "classes": 3})
    # Spawned processes would not see these small sizes; tests/test_distributed.py trains with two.
    monkeypatch.setattr(module, "processes", lambda _: {"step_of_two_to_one": 2.0, "efficiency": 0.5})
    found = run("scaling", monkeypatch, tmp_path / "out.json", "--rounds", "2")
    for name in ("batch", "size", "classes"):
        assert found[name]["mmkd"][0] == 1
        assert len(found[name]["ratio"]) == 2
    assert module.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_startup_measures_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("startup")
    for index in range(2):
        (tmp_path / f"{index}.jpg").touch()
    for kind in ("alone", "live", "cached"):
        monkeypatch.setattr("sys.argv", ["startup.py", *SMALL, "--one", kind, "--folder", str(tmp_path)])
        found = module.one(module.parse_args())
        assert set(found) == {"import", "build"} | ({"first answer"} if kind != "alone" else set())


def four_images(folder: Path) -> str:
    """The distilled config of the demo, whose test data are four images."""
    from mmkd.compat import load_config

    cfg = load_config("configs/bccd/kd.py")
    cfg.test_dataloader.dataset.indices = 4
    cfg.test_dataloader.num_workers = 0
    cfg.test_dataloader.persistent_workers = False
    small = json.loads(Path(cfg.test_evaluator.ann_file).read_text())
    kept = [image["id"] for image in small["images"][:4]]
    small["images"] = small["images"][:4]
    small["annotations"] = [box for box in small["annotations"] if box["image_id"] in kept]
    (folder / "four.json").write_text(json.dumps(small))
    cfg.test_evaluator.ann_file = str(folder / "four.json")
    cfg.dump(folder / "few.py")
    return str(folder / "few.py")


@pytest.mark.slow
def test_teacher_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = four_images(tmp_path)
    rows = run("teacher_precision", monkeypatch, tmp_path / "out.json", "--config", config)["rows"]
    assert len(rows) == 3
    stock = rows["stock detector"]["coco/bbox_mAP"]
    assert stock > 0.3
    assert rows["mmkd, precision='fp32'"]["coco/bbox_mAP"] == pytest.approx(stock, abs=0.005)


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch.ops.onednn, "qconv_pointwise"), reason="this torch has other operators for 8 bits"
)
def test_teacher_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = ("each image", "the batch", "the first batch")
    only = [*(f"int8, range of {span}" for span in spans), "default memory format", "half size"]
    options = ["--config", four_images(tmp_path), "--rounds", "2", "--only", *only]
    found = run("teacher_forward", monkeypatch, tmp_path / "out.json", *SMALL, *options)
    assert list(found["ratios"]) == list(found["mAP"])
    assert set(found["mAP"]) == {"as mmkd runs it", *only}
    usual = found["mAP"]["as mmkd runs it"]
    assert usual > 0.3
    for name in only[:-1]:
        assert found["mAP"][name] == pytest.approx(usual, abs=0.05), name
    assert 0 < found["mAP"]["half size"] < usual


def test_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("plot")
    monkeypatch.setattr(module, "OUT", tmp_path)
    monkeypatch.setattr(module, "PICTURE", tmp_path / "picture.png")
    row = {"N": 44_000, "K": 3, "activation": "softmax", "speed": {"PyTorch": 2.0}}
    line = {"points": [1, 2], "mmkd": [1, 2], "alone": [1, 1.5]}
    for name, content in (
        ("step_cost", {"ratios": {"student alone": 1.0, "mmkd": 1.1, "mmdet style": 1.5}}),
        ("loss_kernels", {"rows": [row]}),
        ("scaling", {"batch": line, "size": line, "classes": line}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    module.main()
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.slow
def test_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--images", "30", "--boxes", "4", "--workers", "0", "2", "--one-file", "20"]
    found = run("predictions", monkeypatch, tmp_path / "out.json", *few)
    assert [(row["images"], row["files"]) for row in found["rows"]] == [(30, 1), (20, 1)]
    for row in found["rows"]:
        assert row["workers"]["2"]["each_private_mib"] > 0
        assert row["workers"]["2"]["all_mib"] > row["workers"]["0"]["all_mib"]
    assert "| 30 | 1 |" in capsys.readouterr().out
