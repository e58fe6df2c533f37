from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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
        ([KD, "s.pth", "--out", "out.json"], "a name ending in .pkl"),
    ],
)
def test_mistakes(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cfg_of(*argv)


def test_pictures_and_test_time_augmentation(tmp_path: Path) -> None:
    cfg, _ = cfg_of(KD, "s.pth", "--show-dir", str(tmp_path), "--tta")
    assert cfg.default_hooks.visualization.draw is True
    assert cfg.model.type == "DetTTAModel"
    assert cfg.model.module.type == "SingleStageDetector"
    assert cfg.test_dataloader.dataset.pipeline[-1].type == "TestTimeAug"


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
