"""The tools on real images: train, kill, resume, test, export; golden losses."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from mmkd.cli import test as test_tool
from mmkd.cli import train as train_tool
from mmkd.registry import MODELS

from .conftest import ROOT, run_tool

KD = "configs/bccd/kd.py"
FEW = [
    "train_dataloader.dataset.indices=0.05",
    "train_dataloader.batch_size=4",
    "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False",
    "val_dataloader.num_workers=0",
    "val_dataloader.persistent_workers=False",
    "val_dataloader.dataset.indices=8",
    "test_dataloader.num_workers=0",
    "test_dataloader.persistent_workers=False",
    "default_hooks.logger.interval=1",
    "randomness.seed=0",
]


def options(*more: str) -> list[str]:
    return ["--cfg-options", *FEW, *more]


def train_and_kill(work_dir: Path) -> None:
    """Kill a run without warning soon after its first checkpoint."""
    command = [
        sys.executable,
        "tools/train.py",
        KD,
        "--work-dir",
        str(work_dir),
        *options("train_cfg.max_epochs=2"),
    ]
    with (work_dir.parent / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": ""}
        )
        for _ in range(1200):
            if (work_dir / "last_checkpoint").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_train_kill_resume_test_export(tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    train_and_kill(work_dir)
    assert (work_dir / "epoch_1.pth").is_file(), (tmp_path / "killed.log").read_text()[-2000:]
    assert not (work_dir / "epoch_2.pth").exists(), "killed too late to show anything"

    resumed = run_tool(
        "tools/train.py", KD, "--work-dir", str(work_dir), "--resume", *options("train_cfg.max_epochs=2")
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    lines = resumed.stdout.splitlines()
    assert len(lines) <= 16, resumed.stdout
    assert not re.search(r"Average Precision|Epoch\(|WARNING|loading annotations", resumed.stdout)
    told = r"training finished; loss [\d.]+ \(cls .*, kd_cls .*\); mAP .*; .* a step, teacher \d+ %"
    assert re.search(told, lines[-7])
    assert all(
        Path(line.split("  ")[-1].strip().split(" (")[0].split(" …")[0]).is_file() for line in lines[-6:]
    )
    log = max(work_dir.glob("*/*.log")).read_text()
    assert "resumed epoch: 1" in log
    assert "loss_kd_cls" in log
    assert "Average Precision" in log
    assert json.loads((work_dir / "metrics_val_last.json").read_text())["epoch"] == 2

    # Every checkpoint holds the plain student and loads into the stock ATSS.
    stock_cfg = Config.fromfile(ROOT / "configs/bccd/student.py").model
    stock = MODELS.build(stock_cfg)
    assert type(stock).__name__ == "ATSS"
    files = sorted(work_dir.glob("*.pth"))
    assert files
    for file in files:
        stock.load_state_dict(torch.load(file)["state_dict"], strict=True)
        assert file.stat().st_size < 4 * 4 * sum(p.numel() for p in stock.parameters()) + 500_000

    last = str(work_dir / "epoch_2.pth")
    few = ["--cfg-options", *[o for o in FEW if o.startswith("test")], "test_dataloader.dataset.indices=4"]
    predictions = []
    for config in (KD, "configs/bccd/student.py"):
        out = tmp_path / f"{Path(config).stem}.pkl"
        words = [config, last, "--out", str(out), "--work-dir", str(tmp_path / "t"), *few]
        assert test_tool.main(words) == 0
        predictions.append(pickle.loads(out.read_bytes()))
    for a, b in zip(*predictions):
        for key in ("bboxes", "scores", "labels"):
            assert torch.equal(a["pred_instances"][key], b["pred_instances"][key])


@pytest.mark.slow
def test_ema_copies_no_teacher(tmp_path: Path) -> None:
    hooks = "custom_hooks=[dict(type='EMAHook')]"
    config = tmp_path / "ema.py"
    config.write_text(f"_base_ = ['mmkd::bccd/kd.py']\n{hooks}\n")
    words = [str(config), "--work-dir", str(tmp_path / "w"), *options("train_cfg.max_epochs=1")]
    assert train_tool.main(words) == 0
    checkpoint = torch.load(tmp_path / "w" / "epoch_1.pth")
    plain = MODELS.build(Config.fromfile(ROOT / "configs/bccd/student.py").model).state_dict().keys()
    assert checkpoint["state_dict"].keys() == plain
    assert {key.removeprefix("module.") for key in checkpoint["ema_state_dict"]} == {*plain, "steps"}


GOLDEN = ROOT / "tests" / "golden_losses.json"


def test_golden_losses(tmp_path: Path) -> None:
    """Four iterations from a fixed seed; `MMKD_UPDATE_GOLDEN=1` writes them anew."""
    done = run_tool(
        "tools/train.py",
        KD,
        "--work-dir",
        str(tmp_path),
        *options("train_cfg.max_epochs=1", "model.teacher.precision=fp32"),  # the same on all machines
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = []
    for file in tmp_path.glob("*/vis_data/scalars.json"):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if "loss" in row:
                found.append({key: row[key] for key in sorted(row) if re.match("loss", key)})
    assert len(found) == 4
    if os.environ.get("MMKD_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
    expected = json.loads(GOLDEN.read_text())
    for row, golden in zip(found, expected, strict=True):
        assert row == pytest.approx(golden, rel=2e-3)


def test_nan_stops_training_with_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = options("optim_wrapper.optimizer.lr=1e30", "param_scheduler=[]", "train_cfg.max_epochs=1")
    assert train_tool.main([KD, "--work-dir", str(tmp_path), *few]) == 2
    said = capfd.readouterr().err
    last = said[said.rindex("mmkd: error") :]
    assert re.search(r"Training stopped: loss\w* is not finite at iteration \d", last)
    assert "Traceback" not in last
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.slow
def test_two_processes_on_cpus(tmp_path: Path) -> None:
    done = subprocess.run(
        ["tools/dist_train.sh", KD, "2", "--work-dir", str(tmp_path), *options("train_cfg.max_epochs=1")],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PORT": str(20000 + os.getpid() % 20000),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (log,) = tmp_path.rglob("*.log")
    assert "[1][2/2]" in log.read_text(), "each of two processes sees half of the 15 images, in batches of 4"
    assert done.stdout.count("training finished") == done.stdout.count("epoch_1.pth") == 1, (
        "one of them tells"
    )
    stock = MODELS.build(Config.fromfile(ROOT / "configs/bccd/student.py").model)
    stock.load_state_dict(torch.load(tmp_path / "epoch_1.pth")["state_dict"], strict=True)
