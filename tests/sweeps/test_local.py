"""The controller, against a program that only pretends to train."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from mmkd.cli.sweep import main
from mmkd.errors import UserError
from mmkd.history import logged_rows
from mmkd.sweeps.local import LocalSweep, suggest, validations
from mmkd.sweeps.sweep_file import read_sweep

from ..conftest import ROOT, only_soak

PROGRAM = """
import json, pathlib, sys, time
options = dict(word.split("=", 1) for word in sys.argv if "=" in word)
folder = pathlib.Path(sys.argv[sys.argv.index("--work-dir") + 1]) / "1" / "vis_data"
folder.mkdir(parents=True)
quality = float(options["optim_wrapper.optimizer.lr"])
if options.get("mode") == "crash":
    sys.exit("mmkd: error: no such thing")
if options.get("mode") == "silent":
    sys.exit(0)
for step in range(int(options.get("steps", 3))):
    with (folder / "scalars.json").open("a") as file:
        file.write(json.dumps({"lr": 1, "loss": 2.0, "step": step}) + "\\n")
        file.write(json.dumps({"coco/bbox_mAP_50": quality * (step + 1), "step": step}) + "\\n")
    time.sleep(float(options.get("sleep", 0)))
"""


@pytest.fixture
def sweep_file(tmp_path: Path) -> Any:
    (tmp_path / "program.py").write_text(PROGRAM)

    def write(parameters: dict[str, Any] | None = None, *options: str, **entries: Any) -> Path:
        content = {
            "program": str(tmp_path / "program.py"),
            "method": "grid",
            "metric": {"name": "val/bbox_mAP_50", "goal": "maximize"},
            "parameters": parameters or {"optim_wrapper.optimizer.lr": {"values": [0.1, 0.3, 0.2]}},
            "command": ["${interpreter}", "${program}", "configs/bccd/kd.py", *options, "${args_no_hyphens}"],
            **entries,
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def rows(work_dir: Path) -> list[dict[str, str]]:
    with (work_dir / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_grid_with_table_pictures_and_best_config(
    sweep_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(sweep_file()), "--local", "--count", "3", "--work-dir", str(out), "--jobs", "2"]) == 0
    table = rows(out)
    assert sorted(row["optim_wrapper.optimizer.lr"] for row in table) == ["0.1", "0.2", "0.3"]
    assert {row["state"] for row in table} == {"complete"}
    assert {row["values"] for row in table} == {"3"}
    assert max(float(row["val/bbox_mAP_50"]) for row in table) == pytest.approx(0.9)
    for picture in ("sweep.png", "sweep_history.png"):
        assert (out / picture).stat().st_size > 5000
    from mmengine.config import Config

    best = Config.fromfile(out / "best.py")
    assert best.optim_wrapper.optimizer.lr == 0.3
    assert best.optim_wrapper.optimizer.type == "AdamW"
    assert best.model.type == "KDSingleStageDetector"
    printed = capsys.readouterr().out
    assert "best: trial" in printed
    assert f"train it again: python tools/train.py {out}/best.py\n" in printed


@pytest.mark.parametrize("method", ["bayes", "random"])
def test_suggestions_stay_in_range(sweep_file: Any, tmp_path: Path, method: str) -> None:
    parameters = {
        "optim_wrapper.optimizer.lr": {"min": 0.01, "max": 0.1, "distribution": "log_uniform_values"}
    }
    LocalSweep(read_sweep(sweep_file(parameters, method=method)), tmp_path / "o", seed=0).run(3)
    values = [float(row["optim_wrapper.optimizer.lr"]) for row in rows(tmp_path / "o")]
    assert len(set(values)) == 3
    assert all(0.01 <= value <= 0.1 for value in values)


@pytest.mark.slow
def test_hyperband_stops_the_hopeless(sweep_file: Any, tmp_path: Path) -> None:
    path = sweep_file(
        {"optim_wrapper.optimizer.lr": {"values": [0.3, 0.2, 0.1]}},
        "steps=8",
        "sleep=0.4",
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2},
    )
    study = LocalSweep(read_sweep(path), tmp_path / "o", seed=5).run(3)
    qualities = [trial.user_attrs["parameters"]["optim_wrapper.optimizer.lr"] for trial in study.trials]
    assert qualities == [0.3, 0.2, 0.1], "this seed tries the best first"
    # By W&B's rule the worse of two still passes; of three, one does.
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert 2 <= len(study.trials[2].intermediate_values) < 8


def test_a_crash_is_recorded_and_the_sweep_goes_on(sweep_file: Any, tmp_path: Path) -> None:
    path = sweep_file({"optim_wrapper.optimizer.lr": {"value": 0.1}, "mode": {"values": ["crash", "ok"]}})
    study = LocalSweep(read_sweep(path), tmp_path / "o", seed=0).run(2)
    states = {t.user_attrs["parameters"]["mode"]: t.state.name for t in study.trials}
    assert states == {"crash": "FAIL", "ok": "COMPLETE"}
    crash = next(row for row in rows(tmp_path / "o") if row["state"] == "fail")
    assert crash["error"] == "mmkd: error: no such thing"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "error"), [("crash", "no such thing"), ("silent", "no value of val/bbox_mAP_50")]
)
def test_five_crashes_in_a_row_stop_it(sweep_file: Any, tmp_path: Path, mode: str, error: str) -> None:
    path = sweep_file(
        {"optim_wrapper.optimizer.lr": {"min": 0.1, "max": 0.2}}, f"mode={mode}", method="random"
    )
    with pytest.raises(UserError, match=rf"5 trials in a row crashed[\s\S]*{error}"):
        LocalSweep(read_sweep(path), tmp_path / "o").run(20)
    assert len(rows(tmp_path / "o")) == 5


def test_interrupt_and_resume_keep_finished_trials(sweep_file: Any, tmp_path: Path) -> None:
    sweep = LocalSweep(read_sweep(sweep_file()), tmp_path / "o", seed=0)
    sweep.run(1)
    with pytest.raises(UserError, match=r"already contains a sweep[\s\S]*--resume"):
        sweep.run(3)
    killed = sweep._open(resume=True).ask()  # a controller that was killed leaves a running trial
    for key, description in sweep.sweep.parameters.items():
        suggest(killed, key, description)
    study = sweep.run(3, resume=True)
    states = [trial.state.name for trial in study.trials]
    assert states.count("COMPLETE") == 3
    assert states.count("RUNNING") == 0
    complete = [t for t in study.trials if t.state.name == "COMPLETE"]
    assert len({t.user_attrs["parameters"]["optim_wrapper.optimizer.lr"] for t in complete}) == 3
    assert study.trials[0].state.name == "COMPLETE"


def test_a_wrong_rule_is_an_error_before_the_first_trial(sweep_file: Any, tmp_path: Path) -> None:
    path = sweep_file(early_terminate={"type": "envelope"})
    with pytest.raises(UserError, match="early_terminate"):
        LocalSweep(read_sweep(path), tmp_path / "o").run(1)
    assert not (tmp_path / "o").exists()


def test_grid_needs_values(sweep_file: Any, tmp_path: Path) -> None:
    path = sweep_file({"optim_wrapper.optimizer.lr": {"min": 0, "max": 1}})
    with pytest.raises(UserError, match="a grid needs `values` for optim_wrapper.optimizer.lr"):
        LocalSweep(read_sweep(path), tmp_path / "o").run(1)


@pytest.mark.parametrize(
    ("description", "kind"),
    [
        ({"min": 1, "max": 4}, int),
        ({"min": 1.0, "max": 4.0}, float),
        ({"min": 1, "max": 4, "distribution": "uniform"}, float),
        ({"min": 1, "max": 4, "distribution": "int_uniform"}, int),
        ({"min": 1, "max": 4, "distribution": "q_uniform", "q": 0.5}, float),
        ({"values": [[1, 2], [3]]}, list),
        ({"value": True}, bool),
    ],
)
def test_distributions(description: dict[str, Any], kind: type) -> None:
    trial = optuna.create_study().ask()
    value = suggest(trial, "x", description)
    assert type(value) is kind
    if kind in (int, float):
        assert 1 <= value <= 4


def test_unknown_distribution() -> None:
    with pytest.raises(UserError, match="found beta"):
        suggest(optuna.create_study().ask(), "x", {"min": 0.0, "max": 1.0, "distribution": "beta"})


def test_history_counts_a_validation_without_metric_as_zero(tmp_path: Path) -> None:
    folder = tmp_path / "1" / "vis_data"
    folder.mkdir(parents=True)
    lines: list[dict[str, float]] = [
        {"lr": 1, "loss": 1},
        {"time": 1, "step": 1},
        {"coco/bbox_mAP": 0.4, "step": 2},
    ]
    (folder / "scalars.json").write_text("\n".join(map(json.dumps, lines)) + '\n{"coco/bbox')
    rows = list(logged_rows(tmp_path))
    assert list(validations(rows, "val/bbox_mAP")) == [0.0, 0.4]
    assert list(validations(rows, "coco/bbox_mAP")) == [0.0, 0.4]
    assert list(validations([], "val/bbox_mAP")) == []


@only_soak
def test_real_trials_on_a_few_images(tmp_path: Path) -> None:
    from ..conftest import run_tool
    from ..test_end_to_end import FEW

    content = yaml.safe_load((ROOT / "configs/sweeps/atss_bayes.yaml").read_text())
    content["command"] += [*FEW, "train_cfg.max_epochs=1"]
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    done = run_tool("tools/sweep.py", str(path), "--local", "--count", "2", "--work-dir", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["state"] for row in rows(out)] == ["complete", "complete"]
    fixed = " ".join(["--cfg-options", *FEW, "train_cfg.max_epochs=1"])
    assert f"train it again: python tools/train.py {out}/best.py {fixed}\n" in done.stdout
    trained = run_tool(
        "tools/train.py", str(out / "best.py"), "--cfg-options", "nothing.here=1", MMKD_SWEEP="1"
    )
    assert trained.returncode == 2
    assert "The config has no nothing.here" in trained.stderr


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_controller_leaves_no_trial_behind(
    sweep_file: Any, tmp_path: Path, jobs: int, number: int
) -> None:
    path = sweep_file({"optim_wrapper.optimizer.lr": {"values": [0.1, 0.2]}}, "steps=300", "sleep=0.2")
    out = tmp_path / "out"
    command = [sys.executable, "tools/sweep.py", str(path), "--local", "--count", "2", "--work-dir", str(out)]
    process = subprocess.Popen([*command, "--jobs", str(jobs)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if len(list(out.glob("trial_*/1/vis_data/scalars.json"))) >= jobs:
            break
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(30) == 130
    assert "--resume" in (process.stderr.read() if process.stderr else "")
    files = list(out.glob("trial_*/1/vis_data/scalars.json"))
    assert len(files) >= jobs
    sizes = [file.stat().st_size for file in files]
    time.sleep(1)
    assert [file.stat().st_size for file in files] == sizes, "the trials have ended"
    assert len(rows(out)) == jobs
    study = LocalSweep(read_sweep(path), out)._open(resume=True)
    waiting = [trial for trial in study.trials if trial.state.name == "WAITING"]
    assert len(waiting) == jobs, "the same values are tried again"
    LocalSweep(read_sweep(path), out)._open(resume=True)
    assert len(study.trials) == 2 * jobs, "once"
