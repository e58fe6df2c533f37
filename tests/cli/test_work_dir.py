from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.cli.work_dir import check_work_dir
from mmkd.errors import UserError

KD = "configs/bccd/kd.py"


def run(folder: Path, config: str = KD, **changes: Any) -> Config:
    """A config that has trained in a folder, as mmengine leaves it."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({key.replace("__", "."): value for key, value in changes.items()})
    cfg.work_dir = str(folder)
    return cfg


def has_trained(cfg: Config) -> None:
    folder = Path(cfg.work_dir)
    folder.mkdir(exist_ok=True)
    cfg.dump(folder / Path(cfg.filename).name)
    (folder / "epoch_1.pth").touch()


def test_the_same_config_may_train_again(tmp_path: Path) -> None:
    cfg = run(tmp_path / "w")
    check_work_dir(cfg)
    has_trained(cfg)
    check_work_dir(cfg)
    check_work_dir(run(tmp_path / "w", optim_wrapper__optimizer__lr=1e-4, train_cfg__max_epochs=9))


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("configs/bccd/student.py", {}),
        ("configs/bccd/kd_boxes.py", {}),
        (KD, {"model__teacher__config": "mmkd::bccd/gfl_teacher.py"}),
        (KD, {"train_dataloader__dataset__ann_file": "annotations/other.json"}),
        (KD, {"model__distill__neck": {"type": "PKDLoss"}}),
    ],
)
def test_another_config_is_refused(tmp_path: Path, config: str, changes: dict[str, Any]) -> None:
    has_trained(run(tmp_path / "w"))
    other = run(tmp_path / "w", config, **changes)
    with pytest.raises(UserError, match=r"checkpoints of another config[\s\S]*kd.py[\s\S]*--work-dir"):
        check_work_dir(other)
    check_work_dir(run(tmp_path / "own", config, **changes))


def test_a_baseline_is_not_written_over_by_its_distilled_namesake(tmp_path: Path) -> None:
    alone = run(tmp_path / "w", "configs/bccd/student.py")
    has_trained(alone)
    model = Config.fromfile(KD).model
    distilled = run(tmp_path / "w", "configs/bccd/student.py", model=model.to_dict())
    with pytest.raises(UserError, match="trained something else as student.py"):
        check_work_dir(distilled)


def test_a_folder_without_checkpoints_is_free(tmp_path: Path) -> None:
    cfg = run(tmp_path / "w")
    has_trained(cfg)
    (tmp_path / "w/epoch_1.pth").unlink()
    check_work_dir(run(tmp_path / "w", "configs/bccd/student.py"))
