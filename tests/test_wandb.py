"""Training and sweeps with the real W&B client, against a server on the loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmengine.config import Config

from mmkd.registry import MODELS

from .conftest import ROOT, SOAK, only_soak
from .test_end_to_end import FEW, KD
from .wandb_server import Run, WandbServer

pytestmark = pytest.mark.slow

TEACHER = "data/bccd/teacher_atss_r18_narrow.pth"
# A student that is good from the start: the teacher itself, taught by itself.
GOOD = ["configs/bccd/teacher.py", "--teacher", "mmkd::bccd/teacher.py", "--teacher-checkpoint", TEACHER]


def environment(server: WandbServer, tmp_path: Path, **more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    own = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1", "WANDB_DIR": str(tmp_path)}
    own["WANDB__FILE_STREAM_TRANSMIT_INTERVAL"] = "1"  # seconds
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**clean, **server.environment(), **own, "PATH": path, **more}


def train(*options: str, config: str = KD) -> list[str]:
    return [sys.executable, "tools/train.py", config, *options]


@contextlib.contextmanager
def started(
    command: list[str], env: dict[str, str], log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[Callable[[], Any]], None]]]:
    """A running process, and a way to wait until something is true while it runs."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True
        )

    def until(condition: Callable[[], Any], seconds: float = 120) -> None:
        for _ in range(int(seconds / 0.05)):
            if condition():
                return
            assert process.poll() is None, f"ended too early:\n{log.read_text()[-5000:]}"
            time.sleep(0.05)
        raise AssertionError(f"never happened:\n{log.read_text()[-5000:]}")

    try:
        yield process, until
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)])  # an agent's runs, if it left any
        process.wait()


def ends(process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> int:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still running:\n{log.read_text()[-5000:]}") from None


def run(command: list[str], env: dict[str, str], timeout: float = 200) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def sweep_file(tmp_path: Path, *words: str, options: list[str] | None = None, **more: Any) -> Path:
    path = tmp_path / "sweep.yaml"
    content = {
        "program": "tools/train.py",
        "method": "bayes",
        "metric": {"name": "val/bbox_mAP_50", "goal": "maximize"},
        "parameters": {"optim_wrapper.optimizer.lr": {"min": 1e-4, "max": 1e-2}},
        "command": [
            "${env}",
            "${interpreter}",
            "${program}",
            *(words or (KD,)),
            "--work-dir",
            str(tmp_path / "work"),
            "--cfg-options",
            *FEW,
            "train_dataloader.batch_size=2",
            *(options or []),
            "${args_no_hyphens}",
        ],
        **more,
    }
    path.write_text(yaml.dump(content))
    return path


def agent(env: dict[str, str], sweep: Path, count: int) -> list[str]:
    """Create a sweep by W&B's command line; returns the command that it prints, for so many runs."""
    wandb = [sys.executable, "-m", "wandb"]
    created = run([*wandb, "sweep", str(sweep)], env)
    name = re.findall(r"wandb agent (\S+)", created.stdout + created.stderr)[0]
    return [*wandb, "agent", "--count", str(count), name]


def only_run(server: WandbServer) -> Run:
    assert len(server.runs) == 1
    return next(iter(server.runs.values()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> WandbServer:
    """What has arrived of a run of two epochs."""
    tmp_path = tmp_path_factory.mktemp("whole")
    config = tmp_path / "logged.py"
    config.write_text(f"""
_base_ = [{str(ROOT / GOOD[0])!r}]
visualizer = dict(vis_backends=[dict(type='WandbBackend')])
custom_hooks = [dict(type='StopHook'), dict(type='WandbSweepHook', num_images=3, interval=1)]
""")
    options = [*FEW, f"load_from={TEACHER}", "train_cfg.max_epochs=2", "train_cfg.val_interval=1"]
    with WandbServer() as server:
        work_dir = ["--work-dir", str(tmp_path / "work")]
        command = train(*GOOD[1:], *work_dir, "--cfg-options", *options, config=str(config))
        run(command, environment(server, tmp_path))
    assert not server.errors
    assert only_run(server).state == "finished"
    return server


def test_rows(whole: WandbServer) -> None:
    logged = only_run(whole)
    training = [row for row in logged.history if "loss" in row]
    assert [row["iter"] for row in training] == list(range(1, 9))
    assert all({"lr", "loss_cls", "loss_kd_cls", "epoch"} <= row.keys() for row in training)
    validations = [row for row in logged.history if "val/bbox_mAP_50" in row]
    assert [row["epoch"] for row in validations] == [1, 2]
    for row in validations:
        assert row["val/bbox_mAP_50"] == row["coco/bbox_mAP_50"] > 0
        assert "loss" not in row
        assert "time" not in row
    assert validations[-1]["best/bbox_mAP"] == max(logged.values("val/bbox_mAP"))
    # A nested summary would hide the target from the sweep.
    assert logged.summary["val/bbox_mAP_50"] == validations[-1]["val/bbox_mAP_50"]


def test_config_and_teacher(whole: WandbServer) -> None:
    config = {key: entry["value"] for key, entry in only_run(whole).config.items() if key != "_wandb"}
    assert config["model"]["distill"]["cls"]["type"] == "DistillationLoss"
    assert config["teacher"]["checkpoint"] == TEACHER
    assert config["teacher"]["classes"] == ["Platelets", "RBC", "WBC"]


def test_the_best_student_is_an_artifact(whole: WandbServer, tmp_path: Path) -> None:
    assert {a.type for a in whole.artifacts.values()} == {"model", "run_table"}, "no code is uploaded"
    logged = only_run(whole)
    models = [artifact for artifact in whole.artifacts.values() if artifact.type == "model"]
    assert {model.name for model in models} == {f"student-{logged.name}"}, "versions of one artifact"
    model = models[-1]
    assert model.committed
    assert model.metadata["metrics"]["bbox_mAP"] == max(logged.values("val/bbox_mAP"))
    assert "best" in model.aliases
    (tmp_path / "student.pth").write_bytes(model.files["student_best.pth"])
    student = torch.load(tmp_path / "student.pth", weights_only=True)
    assert student.keys() == {"meta", "state_dict"}
    stock = MODELS.build(Config.fromfile(GOOD[0]).model)
    stock.load_state_dict(student["state_dict"], strict=True)


def test_the_table_holds_what_was_there_and_what_was_found(whole: WandbServer) -> None:
    tables = [a for a in whole.artifacts.values() if a.type == "run_table"]
    assert len(tables) == 2, "one after the first validation, one after training"
    table = json.loads(tables[-1].files["evaluation.table.json"])
    assert table["columns"] == ["file", "ground truth", "teacher", "student"]
    assert len(table["data"]) == 3

    annotations = json.loads((ROOT / "data/bccd/annotations/val.json").read_text())
    for file, truth, teacher, student in table["data"]:
        image = next(i for i in annotations["images"] if i["file_name"] == file)
        boxes = [a["bbox"] for a in annotations["annotations"] if a["image_id"] == image["id"]]
        found = [box["position"] for box in truth["boxes"]["ground truth"]]
        corners = sorted((p["minX"], p["minY"], p["maxX"], p["maxY"]) for p in found)
        expected = sorted((x, y, x + w, y + h) for x, y, w, h in boxes)
        assert len(corners) == len(expected)
        for one, other in zip(corners, expected):
            assert one == pytest.approx(other, abs=0.6)
        assert len(teacher["boxes"]["teacher"]) > 3
        assert all(box["scores"]["score"] >= 0.3 for box in teacher["boxes"]["teacher"])
        assert "student" in student["boxes"]
        assert truth["path"] in tables[-1].files


@pytest.mark.parametrize("form", ["command line", pytest.param("function", marks=(pytest.mark.soak, SOAK))])
def test_hyperband_stops_a_hopeless_run_through_the_agent(
    wandb_server: WandbServer, tmp_path: Path, form: str
) -> None:
    # The second run detects nothing and would train for many epochs.
    thr, epochs = "model.test_cfg.score_thr", "train_cfg.max_epochs"
    wandb_server.suggestions = [
        {"lr": 1e-4, thr: 0.05, epochs: 2},
        {"optim_wrapper.optimizer.lr": 1e-5, "temperature": 4, thr: 1.1, epochs: 500},
    ]
    path = sweep_file(
        tmp_path,
        *GOOD,
        options=[
            f"load_from={TEACHER}",
            "val_dataloader.dataset.indices=4",
            "train_dataloader.dataset.indices=0.02",
            "train_cfg.val_interval=1",
        ],
        early_terminate={"type": "hyperband", "max_iter": 3, "s": 1, "eta": 3},
    )
    env, log = environment(wandb_server, tmp_path), tmp_path / "agent.log"
    command = [sys.executable, "tools/sweep.py", str(path), "--count", "2"]
    if form == "command line":
        command = agent(env, path, 2)
    with started(command, env, log) as (process, _):
        assert ends(process, log) == 0
    assert not wandb_server.errors, wandb_server.errors
    good, hopeless = wandb_server.runs.values()
    assert good.state == hopeless.state == "finished"
    for one, rate, temperature in ((good, 1e-4, None), (hopeless, 1e-5, 4)):
        assert one.sweep == "sweep0"
        config = {key: entry["value"] for key, entry in one.config.items() if key != "_wandb"}
        assert config["optim_wrapper"]["optimizer"]["lr"] == rate
        assert config["model"]["distill"]["cls"].get("temperature") == temperature
    assert good.config["lr"]["value"] == 1e-4, "the short name stays W&B's own"
    assert (tmp_path / "work" / good.name / "epoch_2.pth").is_file()
    # Where nothing is detected mmdet gives no metric; the sweep needs one.
    assert hopeless.values("val/bbox_mAP_50")[:2] == [0.0, 0.0]
    assert len(hopeless.values("val/bbox_mAP_50")) < 50
    folder = tmp_path / "work" / hopeless.name
    assert (folder / "last_checkpoint").read_text() == str(folder / "interrupted.pth")
    at = torch.load(folder / "interrupted.pth")["meta"]
    assert at["iter"] - hopeless.values("iter")[-1] in (0, 1), "it ended within an iteration"


@pytest.mark.parametrize("by", [pytest.param("server", marks=(pytest.mark.soak, SOAK)), "signal"])
def test_all_processes_of_a_run_are_stopped(wandb_server: WandbServer, tmp_path: Path, by: str) -> None:
    port = 20000 + os.getpid() % 20000
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command = [*launch, "tools/train.py", KD, "--launcher", "pytorch", "--work-dir"]
    work_dir, log = tmp_path / "work", tmp_path / "log.txt"
    workers = ["train_dataloader.num_workers=1", "train_cfg.max_epochs=500", "train_cfg.val_interval=3"]
    command += [str(work_dir), "--cfg-options", *FEW, *workers]
    env = environment(wandb_server, tmp_path, WANDB_SWEEP_ID="sweep", WANDB_RUN_ID="run")
    with started(command, env, log) as (process, until):
        until(lambda: wandb_server.runs and only_run(wandb_server).values("loss"))
        if by == "server":
            only_run(wandb_server).stop = True
            assert ends(process, log) == 0
        else:  # the launcher passes it on to all processes of its workers, and fails by it
            process.terminate()
            ends(process, log)
    logged = only_run(wandb_server)
    assert (logged.starts, logged.state) == (1, "finished"), log.read_text()[-3000:]
    assert (work_dir / "run" / "interrupted.pth").is_file()
    assert "training stopped early" in log.read_text()
    assert "Error" not in log.read_text().split("training stopped early")[0]


@only_soak
def test_a_preempted_run_goes_on_where_it_was(wandb_server: WandbServer, tmp_path: Path) -> None:
    wandb_server.suggestions = [{"lr": 1e-3}]
    path = sweep_file(tmp_path, options=["train_cfg.max_epochs=2", "train_dataloader.dataset.indices=0.15"])
    env, log = environment(wandb_server, tmp_path), tmp_path / "agent.log"
    with started(agent(env, path, 2), env, log) as (process, until):
        until(lambda: wandb_server.runs and len(only_run(wandb_server).values("loss")) > 3)
        listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
        for pid in listed.stdout.split():
            if "train.py" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(int(pid), signal.SIGUSR1)
        ends(process, log)
    logged = only_run(wandb_server)
    assert logged.starts == 2
    assert logged.exit_codes == [128 + signal.SIGUSR1, 0], log.read_text()[-3000:]
    assert logged.preempted == 1
    assert logged.state == "finished"
    iterations = [row["iter"] for row in logged.history if "loss" in row]
    assert iterations == list(range(1, len(iterations) + 1)), "none twice, none left out"
    assert [row["epoch"] for row in logged.history if "val/bbox_mAP_50" in row] == [1, 2]
    text = log.read_text()
    assert "batches of this epoch are already done" in text or "running the interrupted validation" in text
    assert not (tmp_path / "work" / logged.name / "interrupted.pth").exists()


def wandb_config(tmp_path: Path, **backend: Any) -> str:
    path = tmp_path / "logged.py"
    path.write_text(f"""
_base_ = [{str(ROOT / "configs/bccd/kd.py")!r}]
visualizer = dict(vis_backends=[dict(type='WandbBackend', **{backend!r})])
custom_hooks = [dict(type='StopHook'), dict(type='WandbSweepHook', num_images=0)]
""")
    return str(path)


def synced(server: WandbServer, env: dict[str, str], text: str) -> None:
    """Follow the advice that a run printed."""
    words = re.findall(r"wandb sync ((?:--\S+ )?\S+)", text)[-1].split()
    run([sys.executable, "-m", "wandb", "sync", *words], {**env, **server.environment()})


@only_soak
def test_training_outlives_the_server(wandb_server: WandbServer, tmp_path: Path) -> None:
    config, env = wandb_config(tmp_path, finish_timeout=3), environment(wandb_server, tmp_path)
    log, work_dir = tmp_path / "log.txt", tmp_path / "work"
    options = ["--cfg-options", *FEW, "train_cfg.max_epochs=3"]
    with started(train("--work-dir", str(work_dir), *options, config=config), env, log) as (process, until):
        until(lambda: wandb_server.runs and only_run(wandb_server).values("loss"))
        wandb_server.die()
        assert ends(process, log) == 0
    assert (work_dir / "epoch_3.pth").is_file()
    assert "W&B did not accept all data" in log.read_text()
    with WandbServer() as another:
        synced(another, env, log.read_text())
        assert only_run(another).values("iter")[-1] == 12


def test_training_starts_without_the_server(tmp_path: Path) -> None:
    with WandbServer() as gone:
        env = environment(gone, tmp_path)
    config = wandb_config(tmp_path, init_timeout=3)
    options = ["--work-dir", str(tmp_path / "work"), "--cfg-options", *FEW, "train_cfg.max_epochs=1"]
    done = run(train(*options, config=config), env)
    assert "Cannot reach W&B" in done.stdout + done.stderr
    with WandbServer() as another:
        synced(another, env, done.stdout + done.stderr)
        assert only_run(another).values("val/bbox_mAP_50") == [0.0]


def test_no_key_is_one_clear_error(tmp_path: Path, wandb_server: WandbServer) -> None:
    env = environment(wandb_server, tmp_path, HOME=str(tmp_path), NETRC=str(tmp_path / "none"))
    env["WANDB_API_KEY"] = ""
    options = ["--wandb", "--work-dir", str(tmp_path / "work"), "--cfg-options", *FEW]
    done = subprocess.run(train(*options), cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "WANDB_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failure_is_a_failed_run(wandb_server: WandbServer, tmp_path: Path) -> None:
    options = ["--wandb", "--work-dir", str(tmp_path / "work"), "--cfg-options", *FEW]
    command = train(*options, "optim_wrapper.optimizer.lr=1e18", "train_cfg.max_epochs=9")
    env = environment(wandb_server, tmp_path)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr[-3000:]
    assert only_run(wandb_server).exit_codes == [2]
