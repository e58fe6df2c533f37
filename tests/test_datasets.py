from __future__ import annotations

import pytest
from mmengine.config import Config

from mmkd.datasets import fraction_of_dataset
from mmkd.errors import UserError
from mmkd.registry import DATASETS


def test_evenly_spaced_part_of_the_data() -> None:
    cfg = Config.fromfile("configs/bccd/student.py").train_dataloader.dataset
    whole = DATASETS.build(cfg)
    tenth = DATASETS.build({"type": "FractionOfDataset", "dataset": cfg, "fraction": 0.1})
    assert len(tenth) == round(0.1 * len(whole)) == 29
    ids = [tenth.get_data_info(i)["img_id"] for i in range(len(tenth))]
    assert ids[0] == whole.get_data_info(0)["img_id"]
    assert ids[-1] == whole.get_data_info(len(whole) - 1)["img_id"]
    assert tenth.metainfo == whole.metainfo


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.5])
def test_out_of_range(fraction: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        fraction_of_dataset({}, fraction)
