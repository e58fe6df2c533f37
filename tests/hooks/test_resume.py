from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd import UserError
from mmkd.hooks import ResumeHook
from mmkd.hooks.resume import candidates, newest_whole

from .toy import Call, toy_runner

DURABLE = {"checkpoint": {"type": "mmdet.DurableCheckpointHook", "interval": 1}}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    toy_runner(tmp_path, default_hooks=DURABLE).train()
    return tmp_path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def resumed(folder: Path, **options: Any) -> Any:
    runner = toy_runner(folder, ResumeHook(), default_hooks=DURABLE, resume=True, **options)
    runner.train()
    return runner


@pytest.mark.parametrize(
    ("broken", "epochs_left"),
    [([], 1), (["epoch_3.pth"], 2), (["epoch_3.pth", "epoch_2.pth"], 3)],
)
def test_the_newest_that_is_whole(
    trained: Path, capsys: pytest.CaptureFixture[str], broken: list[str], epochs_left: int
) -> None:
    for name in broken:
        truncate(trained / name)
    runner = resumed(trained, epochs=4)
    assert len(runner.model.seen) == epochs_left * 5
    told = "".join(capsys.readouterr())
    assert all(re.search(rf"Cannot resume from \S*{name}", told) for name in broken)


def test_what_last_checkpoint_says_may_be_wrong(trained: Path, tmp_path: Path) -> None:
    runner = toy_runner(trained)
    for content in ("", str(trained / "gone.pth")):
        (trained / "last_checkpoint").write_text(content)
        assert newest_whole(trained, runner) == trained / "epoch_3.pth"
    (trained / "last_checkpoint").write_text(str(trained / "epoch_1.pth"))
    assert next(candidates(trained)).name == "epoch_1.pth", "it is believed while it can be"
    (trained / "last_checkpoint").unlink()
    os.utime(trained / "epoch_2.pth", (2e9, 2e9))
    assert newest_whole(trained, runner) == trained / "epoch_2.pth", "else they go by age"


def test_a_folder_that_was_moved(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.move(trained, moved)
    os.utime(moved / "epoch_1.pth", (2e9, 2e9))
    assert newest_whole(moved, toy_runner(moved)) == moved / "epoch_3.pth"
    moved.rename(trained)


def test_weights_alone_are_not_resumed_from(trained: Path) -> None:
    torch.save({"state_dict": {}}, trained / "epoch_3.pth")
    assert newest_whole(trained, toy_runner(trained)) == trained / "epoch_2.pth"
    with pytest.raises(UserError, match=r"no training state[\s\S]*found: +state_dict"):
        resumed(trained, load_from=str(trained / "epoch_3.pth"))
    toy_runner(trained, ResumeHook(), load_from=str(trained / "epoch_3.pth"), epochs=1).train()


def test_a_state_of_another_model_is_not_resumed_from(trained: Path) -> None:
    """mmengine would load what fits, and train on with random weights for the rest."""
    path = trained / "epoch_3.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["state_dict"]["line.weight"] = torch.zeros(2, 1)
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="does not fit the model") as error:
        resumed(trained)
    assert "line.weight" in str(error.value)


def test_none_can_be_read(trained: Path) -> None:
    for path in trained.glob("*.pth"):
        truncate(path)
    with pytest.raises(UserError, match=r"No usable checkpoint in .*[\s\S]*epoch_1.pth"):
        resumed(trained)


def test_nothing_to_resume_from_begins_anew(tmp_path: Path) -> None:
    assert len(resumed(tmp_path, epochs=1).model.seen) == 5


def test_a_named_file_is_taken_as_it_is(trained: Path) -> None:
    runner = resumed(trained, load_from=str(trained / "epoch_1.pth"), epochs=2)
    assert len(runner.model.seen) == 5


@pytest.mark.parametrize("by_epoch", [True, False])
def test_the_validation_that_is_due(tmp_path: Path, by_epoch: bool) -> None:
    """A run that is killed after its last checkpoint still gets its last metrics, once."""
    cfg: dict[str, Any] = {"default_hooks": DURABLE}
    if not by_epoch:
        cfg["train_cfg"] = {"by_epoch": False, "max_iters": 6, "val_interval": 3}
        cfg["default_hooks"] = {"checkpoint": {**DURABLE["checkpoint"], "interval": 3, "by_epoch": False}}

    def kill(runner: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy_runner(tmp_path, Call("before_val_epoch", 2, kill), epochs=2, **cfg).train()
    validations = Call("after_val_epoch", 0, None)
    runner = toy_runner(tmp_path, validations, ResumeHook(), epochs=2, resume=True, **cfg)
    runner.train()
    assert (validations.count, len(runner.model.seen)) == (1, 0)
