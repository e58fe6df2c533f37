from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmkd.data import UnlabelledImages, is_labelled
from mmkd.errors import UserError
from mmkd.registry import DATASETS

LOADS = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}]
PIPELINE = [
    *LOADS,
    {"type": "Resize", "scale": (64, 64), "keep_ratio": True},
    {"type": "RandomFlip", "prob": 1.0},
    {"type": "RandomCrop", "crop_size": (32, 32), "allow_negative_crop": True},
    {"type": "FilterAnnotations", "min_gt_bbox_wh": (2, 2)},
    {"type": "PhotoMetricDistortion"},
    {"type": "PackDetInputs"},
]


def cards(**options: Any) -> Any:
    cfg = {"type": "UnlabelledImages", "data_root": "data/cards/", "images": "images/train/"}
    return DATASETS.build({**cfg, "pipeline": PIPELINE, **options})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b/deep").mkdir(parents=True)
    for name, size in (("b/deep/2.png", (30, 20)), ("a.JPG", (20, 30)), ("b/1.jpeg", (8, 8))):
        pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "b/notes.md").write_text("no image")
    (tmp_path / "b/.hidden.jpg").write_text("no image either")
    return tmp_path


def names(dataset: Any) -> list[str]:
    return [dataset.get_data_info(i)["img_id"] for i in range(len(dataset))]


def test_a_folder_with_all_below_it(folder: Path) -> None:
    (folder / "b/round").symlink_to(folder, target_is_directory=True)
    dataset = UnlabelledImages(images=str(folder), data_root=str(folder))
    assert sorted(names(dataset)) == ["a.JPG", "b/1.jpeg", "b/deep/2.png"]


def test_lists(folder: Path) -> None:
    (folder / "list.txt").write_text("deep/2.png\n\n1.jpeg\n")
    images = [{"file_name": "1.jpeg", "id": 7, "width": 8, "height": 8}]
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    root: dict[str, Any] = {"data_root": str(folder), "data_prefix": {"img": "b"}}
    listed = UnlabelledImages(images="list.txt", **root)
    assert names(listed) == ["b/deep/2.png", "b/1.jpeg"]
    coco = UnlabelledImages(images="coco.json", **root)
    assert names(coco) == ["b/1.jpeg"]
    assert "width" in coco.get_data_info(0)
    mixed = UnlabelledImages(images=["a.JPG", "coco.json", "list.txt", "b/deep"], **root)
    assert names(mixed) == ["a.JPG", "b/1.jpeg", "b/deep/2.png"], "each once"
    rest = UnlabelledImages(images=".", leave_out="coco.json", **root)
    assert sorted(names(rest)) == ["a.JPG", "b/deep/2.png"]


def test_a_sample_is_marked_and_empty() -> None:
    sample = cards()[0]["data_samples"]
    assert sample.labelled is False
    assert not is_labelled(sample)
    instances = sample.gt_instances
    assert (len(instances), instances.bboxes.shape, len(instances.masks)) == (0, (0, 4), 0)
    assert sample.img_shape == (32, 32)
    plain = cards(pipeline=[LOADS[0], PIPELINE[-1]])[0]["data_samples"]
    assert plain.gt_instances.bboxes.shape == (0, 4)
    assert not is_labelled(plain)


def test_detectors_that_read_a_text_get_the_classes() -> None:
    info = cards(return_classes=True, metainfo={"classes": ("a", "b")}).get_data_info(0)
    assert info["text"] == ("a", "b")
    assert info["custom_entities"]
    assert "text" not in cards().get_data_info(0)


def test_labelled_samples_are_not_marked() -> None:
    labelled = {"type": "CocoDataset", "data_root": "data/cards/", "ann_file": "annotations/train.json"}
    labelled |= {"data_prefix": {"img": "images/train/"}, "pipeline": [LOADS[0], PIPELINE[-1]], "indices": 3}
    labelled |= {"metainfo": {"classes": ("ace", "jack", "king", "nine", "queen", "ten")}}
    assert all(is_labelled(sample["data_samples"]) for sample in DATASETS.build(labelled))


def test_options_of_every_data_set(folder: Path) -> None:
    assert len(cards(indices=5)) == 5
    assert cards(metainfo={"classes": ("a", "b")}).metainfo["classes"] == ("a", "b")
    assert len(cards(indices=10, lazy_init=True)) == 10
    big = UnlabelledImages(images=str(folder), filter_cfg={"min_size": 20, "filter_empty_gt": True})
    assert len(big) == 2
    tenth = DATASETS.build({"type": "FractionOfDataset", "dataset": cards_cfg(), "fraction": 0.1})
    assert len(tenth) == 24


def cards_cfg() -> dict[str, Any]:
    return {"type": "UnlabelledImages", "data_root": "data/cards/", "images": "images/train/"}


def test_sizes_are_read_when_a_sampler_asks(folder: Path) -> None:
    dataset = UnlabelledImages(images=["b/deep/2.png", "a.JPG"], data_root=str(folder))
    info = pickle.loads(pickle.dumps(dataset.get_data_info(0)))
    assert "width" not in info
    assert (info["width"], info["height"]) == (30, 20)
    with pytest.raises(KeyError):
        info["depth"]
    turned = Image.open(folder / "a.JPG")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "a.JPG", exif=exif)
    info = dataset.get_data_info(1)
    assert (info["width"], info["height"]) == (30, 20), "as mmcv turns it"
    loaded = UnlabelledImages(images=str(folder / "a.JPG"), pipeline=[LOADS[0], PIPELINE[-1]])[0]
    assert loaded["data_samples"].ori_shape == (20, 30)


def test_the_quarter_of_the_cards() -> None:
    quarter = json.loads(Path("data/cards/annotations/quarter.json").read_text())
    rest = cards(
        images="annotations/train.json",
        leave_out="annotations/quarter.json",
        data_prefix={"img": "images/train/"},
    )
    labelled = {f"images/train/{image['file_name']}" for image in quarter["images"]}
    assert (len(labelled), len(rest)) == (61, 181)
    assert not labelled & set(names(rest))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "nowhere"}, r"Cannot read `images`[\s\S]*data/cards/nowhere"),
        ({"images": "annotations"}, r"contains no images[\s\S]*data/cards/annotations"),
        ({"images": []}, "lists no images"),
        ({"images": "LICENSE"}, "Cannot read `"),
        ({"leave_out": "images/val"}, r"none of the images[\s\S]*0 in common"),
        ({"leave_out": "images/train"}, "all images"),
        ({"images": "annotations/broken.json"}, "Cannot read `"),
        ({"ann_file": "annotations/train.json"}, "reads no annotations"),
        ({"pipeline": [*LOADS, {"type": "RandomCrop", "crop_size": (9, 9)}]}, "allow_negative_crop=False"),
        (
            {
                "pipeline": [
                    {"type": "RandomChoice", "transforms": [[{"type": "RandomCrop", "crop_size": (9, 9)}]]}
                ]
            },
            "RandomCrop drops images",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cards(**options)


def test_a_broken_coco_file(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"images": [{}]}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match="Cannot read `"):
            UnlabelledImages(images="a.json", data_root=str(tmp_path))


def test_a_pipeline_that_drops_all_or_does_not_pack() -> None:
    drops = cards(pipeline=[*LOADS, lambda results: None, PIPELINE[-1]])
    with pytest.raises(UserError, match="function drops images without objects"):
        drops[0]
    with pytest.raises(UserError, match=r"does not pack its samples[\s\S]*MultiImageMixDataset"):
        cards(pipeline=LOADS)[0]


def test_a_size_that_cannot_be_read(folder: Path) -> None:
    shutil.copy(folder / "b/notes.md", folder / "a.JPG")
    with pytest.raises(UserError, match=r"Cannot read image[\s\S]*a\.JPG"):
        UnlabelledImages(images="a.JPG", data_root=str(folder)).get_data_info(0)["width"]
