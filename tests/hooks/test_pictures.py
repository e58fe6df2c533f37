from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from PIL import Image

from mmkd.errors import UserError
from mmkd.hooks import PicturesHook

# A GIF keeps equal pictures in a row as one.
SHADES = {"images": "black", "below": "navy", "elsewhere": "maroon"}
RUNNER: Any = SimpleNamespace(logger=MMLogger.get_instance("pictures"))


@pytest.fixture(autouse=True)
def _visualizer() -> None:
    DetLocalVisualizer.get_instance("pictures").dataset_meta = {"classes": ("cell",)}


def sample(path: Path, **about: Any) -> DetDataSample:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40), SHADES[path.parent.name]).save(path)
    boxes = torch.tensor([[10.0, 5, 50, 30]])
    found = InstanceData(bboxes=boxes, labels=torch.tensor([0]), scores=torch.tensor([0.9]))
    truth = InstanceData(bboxes=boxes, labels=torch.tensor([0]))
    one = DetDataSample(metainfo={"img_path": str(path), **about}, gt_instances=truth)
    one.pred_instances = found
    return one


def test_pictures_with_and_without_labels(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    hook = PicturesHook(str(out), root=str(images))
    hook.after_test_iter(RUNNER, 0, None, [sample(images / "a.png"), sample(images / "below/a.png")])
    hook.after_test_iter(RUNNER, 1, None, [sample(images / "b.png", labelled=False)])
    hook.after_test_iter(RUNNER, 2, None, [sample(tmp_path / "elsewhere/c.png")])
    hook.after_test(RUNNER)
    sizes = {str(path.relative_to(out)): Image.open(path).size for path in out.rglob("*.*")}
    beside = (120, 40)
    assert sizes == {
        "a.png": beside,
        "below/a.png": beside,
        "b.png": (60, 40),
        "c.png": beside,
        "all.gif": beside,
    }
    assert Image.open(out / "all.gif").n_frames == 4  # type: ignore[attr-defined]
    assert Image.open(out / "b.png").convert("L").getextrema()[1] > 0, "the box is drawn"


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"Cannot write pictures(.|\n)*--show-dir DIR"):
        PicturesHook(str(tmp_path / "out"))
