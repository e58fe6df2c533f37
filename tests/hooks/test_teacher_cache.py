from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from ..conftest import ROOT, run_tool

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


def train(folder: Path, config: str = "configs/bccd/kd.py") -> tuple[int, str]:
    cache = f"model.teacher.cache.dir={folder / 'cache'}"
    ran = run_tool(
        "tools/train.py",
        config,
        "--work-dir",
        str(folder / "run"),
        "--cfg-options",
        cache,
        *FEW,
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_training_reads_what_the_tool_has_stored(tmp_path: Path) -> None:
    filled = run_tool(
        "tools/cache_teacher.py",
        "configs/bccd/kd.py",
        "--cfg-options",
        f"model.teacher.cache.dir={tmp_path / 'cache'}",
        "train_dataloader.dataset.indices=8",
        "--workers",
        "0",
    )
    assert filled.returncode == 0, filled.stderr
    assert "0 of 32 answers read, 32 computed, 32 stored at" in filled.stdout  # 8 images, 4 flips
    code, said = train(tmp_path)
    assert code == 0, said
    assert "teacher cache: 16 of 16 answers read, 0 computed, in" in said


def test_a_pipeline_without_key_is_refused_before_the_first_step(tmp_path: Path) -> None:
    cfg = Config.fromfile(ROOT / "configs/bccd/kd.py")
    cfg.train_dataloader.dataset.pipeline.insert(3, {"type": "YOLOXHSVRandomAug"})
    cfg.dump(tmp_path / "config.py")
    code, said = train(tmp_path, str(tmp_path / "config.py"))
    assert code == 2, said
    assert "cannot be cached: YOLOXHSVRandomAug is in the training pipeline" in said
    assert "Epoch(train)" not in said
