from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from mmkd.cli.test import config_of, main, parse_args
from mmkd.errors import UserError

KD = "configs/bccd/kd.py"


def cfg_of(*argv: str) -> Any:
    return config_of(parse_args(argv))


def test_a_distilled_config_is_tested_as_its_student() -> None:
    cfg, checkpoint = cfg_of(KD, "student.pth", "--cfg-options", "model.teacher.checkpoint=nowhere.pth")
    assert checkpoint == "student.pth"
    assert cfg.model.type == "SingleStageDetector"
    assert "teacher" not in cfg.model


def test_the_teacher_through_the_same_config() -> None:
    cfg, checkpoint = cfg_of(KD, "--teacher")
    assert checkpoint == "data/bccd/teacher_atss_r18_narrow.pth"
    assert cfg.model.backbone.base_channels == 32
    assert cfg.test_dataloader.dataset.data_root == "data/bccd/"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([KD], "No checkpoint to evaluate"),
        ([KD, "s.pth", "--teacher"], "leave out one of the two"),
        (["configs/bccd/student.py", "--teacher"], "config with model.teacher"),
        ([KD, "s.pth", "--images", "data/bccd/images/val"], "add --show-dir DIR"),
        ([KD, "s.pth", "--images", "x", "--show-dir", "y", "--out", "o.pkl"], "use mmkd-predict"),
        ([KD, "s.pth", "--images", "nowhere", "--show-dir", "y"], "Cannot read `--images`"),
        ([KD, "s.pth", "--images", "data/bccd/annotations", "--show-dir", "y"], "contains no images"),
    ],
)
def test_mistakes(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cfg_of(*argv)


def test_predictions_need_a_pickle(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cfg_of(KD, "s.pth", "--out", "out.json")
    assert "--out: needs a name ending in .pkl or .pickle, found out.json" in capsys.readouterr().err


def test_pictures_and_test_time_augmentation(tmp_path: Path) -> None:
    cfg, _ = cfg_of(KD, "s.pth", "--show-dir", str(tmp_path), "--tta")
    hook = cfg.default_hooks.visualization
    assert (hook.type, hook.folder, hook.root) == ("PicturesHook", str(tmp_path), "data/bccd/images/val")
    assert cfg.model.type == "DetTTAModel"
    assert cfg.model.module.type == "SingleStageDetector"
    assert cfg.test_dataloader.dataset.pipeline[-1].type == "TestTimeAug"


@pytest.mark.slow
def test_pictures_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images/below").mkdir(parents=True)
    for number, path in enumerate(sorted(Path("data/bccd/images/val").glob("*.jpg"))[:2]):
        shutil.copy(path, tmp_path / "images" / ("below" if number else "") / path.name)
    out = tmp_path / "out"
    options = ["--work-dir", str(tmp_path / "work"), "--cfg-options", "test_dataloader.num_workers=0"]
    options.append("test_dataloader.persistent_workers=False")
    argv = [KD, "--teacher", "--images", str(tmp_path / "images"), "--show-dir", str(out), *options]
    assert main(argv) == 0
    pictures = list(out.rglob("*.jpg"))
    assert sorted(path.parent.name for path in pictures) == ["below", "out"]
    for path in pictures:  # without labels nothing stands beside it
        (source,) = (tmp_path / "images").rglob(path.name)
        before, after = Image.open(source).convert("RGB"), Image.open(path).convert("RGB")
        assert before.size == after.size
        assert ImageChops.difference(before, after).getbbox() is not None
    assert (out / "all.gif").is_file()
    told = capsys.readouterr().out
    assert f"pictures  {out}" in told
    assert "nothing was detected" not in told


def test_wrong_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([KD, "data/bccd/teacher_atss_r18_narrow.pth", "--work-dir", str(tmp_path)])
    assert code == 2
    err = capsys.readouterr().err
    assert "does not fit the model" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("tta", [False, True])
def test_evaluates_the_teacher_and_dumps(tmp_path: Path, tta: bool) -> None:
    out = tmp_path / "out.pkl"
    few = [
        "test_dataloader.dataset.indices=4",
        "test_dataloader.num_workers=0",
        "test_dataloader.persistent_workers=False",
    ]
    options = ["--tta"] if tta else []
    assert (
        main(
            [KD, "--teacher", "--work-dir", str(tmp_path), "--out", str(out), *options, "--cfg-options", *few]
        )
        == 0
    )
    assert not list(tmp_path.glob("*.py")), "which would say that this config has trained here"
    assert len(list(tmp_path.glob("*/*.py"))) == 1
    import pickle

    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 4
    assert max(float(torch.as_tensor(p["pred_instances"]["scores"]).max()) for p in predictions) > 0.3
