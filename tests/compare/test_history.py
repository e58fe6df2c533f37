from __future__ import annotations

from pathlib import Path

import pytest

from mmkd.compare.history import (
    class_metrics,
    curve,
    loss_shares,
    metric,
    read_history,
    seconds_per_iteration,
    time_curve,
    time_to,
)

from .fabricated import coco, scalars


def log(folder: Path, name: str, text: str) -> None:
    (folder / name / "vis_data").mkdir(parents=True)
    (folder / name / "vis_data/scalars.json").write_text(text)


def test_a_training(tmp_path: Path) -> None:
    log(tmp_path, "1", scalars(0.6, distilled=True))
    log(tmp_path / "evaluation", "1", scalars(0.9))
    rows = read_history(tmp_path)
    assert curve(rows) == [(1, pytest.approx(0.2)), (2, pytest.approx(0.4)), (3, pytest.approx(0.6))]
    shares = loss_shares(rows)
    assert shares[:3] == [(1, "loss_cls", 0.5), (1, "loss_bbox", 0.25), (1, "loss_kd_box", 0.25)]
    assert len(shares) == 3 * 12
    assert seconds_per_iteration(rows) == 0.5
    assert time_curve(rows) == [(2.0, curve(rows)[0][1]), (4.0, curve(rows)[1][1]), (6.0, curve(rows)[2][1])]


def test_interrupted_training_counts_each_step_once(tmp_path: Path) -> None:
    first = scalars(0.3, epochs=2).splitlines()
    log(tmp_path, "1", "\n".join(first) + '\n{"coco/bbox_m')  # cut off
    log(tmp_path, "2", "\n".join(scalars(0.6).splitlines()[5:]) + "\n")  # from epoch 2 on
    assert [step for step, _ in curve(read_history(tmp_path))] == [1, 2, 3]
    assert curve(read_history(tmp_path))[1][1] == pytest.approx(0.4)


def test_nothing_logged(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []
    assert curve([]) == time_curve([]) == []


@pytest.mark.parametrize(
    ("target", "seconds"), [(0.1, 10), (0.2, 10), (0.3, 15), (0.4, 20), (0.5, 45), (0.6, 50), (0.61, None)]
)
def test_time_to_a_value(target: float, seconds: float | None) -> None:
    points = [(10.0, 0.2), (20.0, 0.4), (30.0, 0.3), (40.0, 0.4), (50.0, 0.6)]
    assert time_to(points, target) == (None if seconds is None else pytest.approx(seconds))
    assert loss_shares([]) == []
    assert seconds_per_iteration([]) is None


def test_nothing_detected_is_zero_and_no_object_is_nothing() -> None:
    assert metric({}, "mAP") == 0.0
    assert metric(coco(0.4), "mAP") == 0.4
    assert metric(coco(0.4), "AP small") is None
    assert metric(coco(0.4), "AP large") is None
    assert metric({"coco/bbox_mAP": float("nan")}, "mAP") is None
    assert metric({"pascal_voc/mAP": 0.3, "pascal_voc/AP50": 0.5}, "AP50") == 0.5


def test_classes() -> None:
    assert class_metrics({**coco(0.4), "coco/x_precision": float("nan")}) == {
        "Platelets": 0.4,
        "RBC": 0.41,
        "WBC": 0.42,
    }
