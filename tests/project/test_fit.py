from __future__ import annotations

from pathlib import Path

import pytest

from mmkd.data.conversion import Split
from mmkd.project.dataset import DataSet
from mmkd.project.fit import Machine, anchor_scale, batch, epochs, fit, side, this_machine

CPU = Machine("cpu", "no GPU", 2)


def gpu(memory: float) -> Machine:
    return Machine("cuda", "a GPU", 16, memory)


def dataset(images: int, longest: int = 320, small: float = 0.1) -> DataSet:
    split = Split("train", Path("a.json"), Path("images"), images, 10 * images)
    sizes = (small, 2 * small, 4 * small)
    return DataSet(
        "coco", Path("data"), ("cat",), {"train": split, "val": split}, {}, longest, sizes, False, ()
    )


@pytest.mark.parametrize(
    ("median", "small", "device", "expected"),
    [
        (320, 0.1, "cpu", 320),
        (300, 0.1, "cpu", 288),
        (4000, 0.1, "cpu", 320),
        (4000, 0.016, "cpu", 512),  # 8 px at 500
        (4000, 0.001, "cpu", 640),
        (4000, 0.1, "cuda", 1344),
        (4000, 0.001, "cuda", 1600),
        (600, 0.001, "cuda", 608),  # nothing is gained by enlarging images
    ],
)
def test_the_size_of_images(median: int, small: float, device: str, expected: int) -> None:
    assert side(median, small, device).value == expected


def test_anchors_begin_where_objects_do() -> None:
    assert [anchor_scale(small).value for small in (100, 32, 31, 16, 15, 1)] == [8, 8, 4, 4, 2, 2]
    assert "a tenth of the objects are below 20 px" in anchor_scale(20).why


def test_the_batch_fits_memory_and_data() -> None:
    assert batch(320, 1000, CPU).value == 8
    assert batch(640, 1000, CPU).value == 4
    assert batch(320, 90, CPU).value == 4
    assert batch(1344, 10000, gpu(140)).value == 16
    assert batch(1344, 10000, gpu(24)).value == 2
    assert batch(640, 10000, gpu(12)).value == 4
    assert batch(320, 200, gpu(140)).value == 8


def test_small_data_has_more_epochs_within_bounds() -> None:
    values = [epochs(steps, pretrained=False).value for steps in (5, 36, 126, 10000)]
    assert values == [100, 56, 16, 12]
    assert epochs(126, pretrained=False).value * 126 >= 2000
    assert epochs(10, pretrained=True).value == 60


def test_all_together() -> None:
    found = fit(dataset(1008), CPU, pretrained=False)
    assert (found.side.value, found.batch.value, found.workers) == (320, 8, 1)
    assert (found.teacher_epochs.value, found.student_epochs.value) == (16, 8)
    assert all(one.why for one in (found.side, found.batch, found.anchor_scale, found.student_epochs))


def test_this_machine() -> None:
    found = this_machine()
    assert found.processors >= 1
    assert (found.device == "cuda") == (found.memory > 0)
