from __future__ import annotations

import pytest
from mmengine.logging import HistoryBuffer

from mmkd.doctor.zoo import logged_ap, zoo_ap


@pytest.mark.parametrize(
    ("config", "checkpoint"),
    [
        ("mmdet::atss/atss_r101_fpn_1x_coco.py", "mine.pth"),
        ("configs/atss/atss_r101_fpn_1x_coco.py", "mine.pth"),
        (
            {"model": {}},
            "https://download.openmmlab.com/mmdetection/v2.0/atss/atss_r101_fpn_1x_coco/"
            "atss_r101_fpn_1x_20200825-dfcadd6f.pth",
        ),
    ],
)
def test_zoo(config: object, checkpoint: str) -> None:
    assert zoo_ap(config, checkpoint) == (0.415, "atss_r101_fpn_1x_coco")


def test_none_of_the_zoo() -> None:
    assert zoo_ap("configs/bccd/teacher.py", "data/bccd/teacher_atss_r18_narrow.pth") is None


def test_logged() -> None:
    hub = {"log_scalars": {"train/loss": HistoryBuffer(), "val/coco/bbox_mAP": HistoryBuffer()}}
    for value in (0.1, 0.25):
        hub["log_scalars"]["val/coco/bbox_mAP"].update(value)
    assert logged_ap({"message_hub": hub}) == 0.25
    assert logged_ap({"meta": {}}) is None
