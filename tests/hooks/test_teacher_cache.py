from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmkd.cli import cache_teacher, train
from mmkd.history import logged_rows

from ..conftest import ROOT

FEW = [
    "train_dataloader.dataset.indices=8",
    "val_dataloader.dataset.indices=8",
    "val_evaluator.ann_file=None",
    "train_cfg.max_epochs=2",
    "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False",
    "val_cfg=None",
    "val_dataloader=None",
    "val_evaluator=None",
    "default_hooks.checkpoint.save_best=None",
    "randomness.seed=0",
]


def words(folder: Path, config: str = "configs/bccd/kd.py") -> list[str]:
    cache = f"model.teacher.cache.dir={folder / 'cache'}"
    return [config, "--work-dir", str(folder / "run"), "--cfg-options", cache, *FEW]


@pytest.mark.slow
def test_training_reads_what_the_tool_has_stored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = [f"model.teacher.cache.dir={tmp_path / 'cache'}", "train_dataloader.dataset.indices=8"]
    assert cache_teacher.main(["configs/bccd/kd.py", "--workers", "0", "--cfg-options", *options]) == 0
    said = capfd.readouterr().out
    assert "0 of 32 outputs read, 32 computed, 32 stored at" in said  # 8 images, 4 flips
    assert train.main(words(tmp_path)) == 0
    assert "teacher cache: 16 of 16 outputs read, 0 computed, in" in "".join(capfd.readouterr())
    assert list(logged_rows(tmp_path / "run"))


@pytest.mark.slow
def test_a_pipeline_without_key_is_refused_before_the_first_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = Config.fromfile(ROOT / "configs/bccd/kd.py")
    cfg.train_dataloader.dataset.pipeline.insert(3, {"type": "YOLOXHSVRandomAug"})
    cfg.dump(tmp_path / "config.py")
    assert train.main(words(tmp_path, str(tmp_path / "config.py"))) == 2
    said = "".join(capfd.readouterr())
    assert "Cannot cache the teacher: the training pipeline contains YOLOXHSVRandomAug" in said
    assert not list(logged_rows(tmp_path / "run"))
