from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.doctor.dataset import examine_dataset
from mmkd.doctor.unlabelled import examine_leaks, examine_readable

from .bccd import errors, examined_preconditions, seen, setup

VAL = Path("data/bccd/images/val")


def mixing(images: str = str(VAL), *, alone: bool = False, by_iter: bool = False, **loader: Any) -> Any:
    """The shipped blood cells, and these images without labels."""

    def damage(cfg: Config) -> None:
        own = cfg.train_dataloader.dataset
        others = {"type": "UnlabelledImages", "images": images, "pipeline": own.pipeline}
        parts = [others] if alone else [own, others]
        cfg.train_dataloader.dataset = {"type": "ConcatDataset", "datasets": parts}
        usual = {"batch_sampler": {"type": "MixedBatchSampler", "source_ratio": [1, 3]}}
        cfg.train_dataloader.update(loader or ({} if alone else usual))
        if by_iter:
            cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 9}

    return damage


def told(*damages: Any) -> list[str]:
    return [f"{one.what}: {one.found}" for one in examined_preconditions(*damages)]


def test_a_mix() -> None:
    found = told(mixing())
    assert "train: unlabelled: 72 unlabelled images" in found
    assert any(
        "1 labelled and 3 unlabelled images; an epoch is one pass over the first" in one for one in found
    )
    assert errors(mixing()) == []


def test_no_labels_at_all() -> None:
    found = told(mixing(alone=True))
    assert "train: mix: no image has labels: the student learns only from its teacher" in found
    assert errors(mixing(alone=True)) == []
    assert setup(mixing(alone=True)).is_unlabelled


def multi_source(**options: Any) -> dict[str, Any]:
    return {"sampler": {"type": "MultiSourceSampler", "batch_size": 4, "source_ratio": [1, 3], **options}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (mixing(batch_sampler=None), "batches are sampled without regard to labels"),
        (mixing(batch_sampler={"type": "MixedBatchSampler", "source_ratio": [9, 1]}), "too small"),
        (mixing(**multi_source()), "never finishes its first"),
        (mixing(by_iter=True, **multi_source(batch_size=8)), "batch_size is 8, the loader's is 4"),
        (mixing(by_iter=True, **multi_source(source_ratio=[9, 1])), "too small"),
        (mixing("data/bccd/nothing"), "Cannot read `images`"),
    ],
)
def test_mixes_that_go_wrong(damage: Any, message: str) -> None:
    (found,) = errors(damage)
    assert message in found


def test_mmdets_sampler_for_a_loop_by_iterations() -> None:
    assert errors(mixing(by_iter=True, **multi_source())) == []
    assert any(
        "1 labelled and 3 unlabelled images" in one for one in told(mixing(by_iter=True, **multi_source()))
    )


def test_the_labelled_data_come_first() -> None:
    def turn(cfg: Config) -> None:
        cfg.train_dataloader.dataset.datasets.reverse()

    assert any("the first data set has no labels" in one for one in errors(mixing(), turn))


def test_a_student_without_a_teacher() -> None:
    def without(cfg: Config) -> None:
        cfg.model = {**Config.fromfile("configs/bccd/student.py").model}

    (found,) = errors(mixing(), without)
    assert "trained as background" in found


def test_leaks_and_files_are_examined_with_the_data() -> None:
    findings = list(examine_dataset(setup(mixing())))
    (leak,) = seen(findings)
    assert (leak.level, leak.what) == ("warning", "unlabelled and val")
    assert "72 validation images are in the unlabelled training data" in leak.found
    assert "(all of them)" in leak.found
    assert any(one.found == "72 headers read, 3 images opened" for one in findings)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    paths = []
    for index, path in enumerate(sorted(VAL.iterdir())[:6]):
        copy = tmp_path / f"{index}.jpg"
        shutil.copy(path, copy)
        paths.append(str(copy))
    Path(paths[2]).write_bytes(Path(paths[2]).read_bytes()[:3000])  # its header is whole
    Path(paths[4]).write_text("no image")
    Path(paths[5]).unlink()
    (found,) = examine_readable(paths, 20)
    assert found.level == "error"
    assert "3 of 6 unreadable" in found.found
    assert paths[4] in found.found
    (found,) = examine_readable([paths[0]], 20)
    assert found.level == "ok"


def test_a_copy_by_another_name_is_found(tmp_path: Path) -> None:
    first, second, *_ = sorted(VAL.iterdir())
    shutil.copy(first, tmp_path / "other.jpg")
    unlabelled = [str(tmp_path / "other.jpg"), str(tmp_path / "gone.jpg")]
    (found,) = examine_leaks(unlabelled, [], [first, second])
    assert found.level == "warning"
    assert f"1 validation images are in the unlabelled training data: {first.name}" in found.found
    clean, twice = examine_leaks(unlabelled, [first], [second])
    assert (clean.level, twice.level) == ("ok", "ok")
    assert "1 images are in both" in twice.found
