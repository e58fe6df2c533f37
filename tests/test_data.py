"""What the data folder says of itself."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from mmdet.models.backbones import MobileNetV2
from PIL import Image

from mmkd.data.split import main

from .conftest import ROOT

BCCD = ROOT / "data/bccd/annotations"


def split(annotations: Path, *into: str) -> None:
    assert main([str(annotations), "--every", "4", "--into", *into]) == 0


def test_the_quarter_of_the_cards_is_what_its_command_makes(tmp_path: Path) -> None:
    shutil.copy(ROOT / "data/cards/annotations/train.json", tmp_path)
    split(tmp_path / "train.json", "rest.json", "quarter.json")
    committed = ROOT / "data/cards/annotations/quarter.json"
    assert (tmp_path / "quarter.json").read_text() == committed.read_text()


def test_the_split_to_choose_by_is_what_its_command_makes(tmp_path: Path) -> None:
    shutil.copy(BCCD / "train.json", tmp_path)
    names = ["tune_train.json", "tune_val.json"]
    split(tmp_path / "train.json", *names)
    whole = {image["id"] for image in json.loads((BCCD / "train.json").read_text())["images"]}
    parts = []
    for name in names:
        assert (tmp_path / name).read_text() == (BCCD / name).read_text()
        content = json.loads((BCCD / name).read_text())
        parts.append({image["id"] for image in content["images"]})
        assert {a["image_id"] for a in content["annotations"]} <= parts[-1]
    assert [len(part) for part in parts] == [219, 73]
    assert parts[0] | parts[1] == whole


def test_mobilenet_has_the_same_layers_in_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models", reason="pip install '.[examples]'")
    monkeypatch.syspath_prepend(ROOT / "data")
    theirs = models.mobilenet_v2(weights=None).features.eval()
    ours = MobileNetV2(out_indices=(7,))
    ours.load_state_dict(importlib.import_module("mobilenet_v2").in_mmdets_names(theirs))
    ours.eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image)[0], theirs(image))


@pytest.mark.parametrize("split", ["train", "val"])
def test_cards_are_as_large_as_their_annotations_say(split: str) -> None:
    folder = ROOT / "data/cards"
    content = json.loads((folder / f"annotations/{split}.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for image in content["images"]:
        with Image.open(folder / "images" / split / image["file_name"]) as opened:
            assert opened.size == sizes[image["id"]]
            assert max(opened.size) == 320
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        width, height = sizes[annotation["image_id"]]
        assert w > 0
        assert h > 0
        assert x >= -1
        assert y >= -1
        assert x + w <= width + 1
        assert y + h <= height + 1
