from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmengine.config import Config

from mmkd.cli import predict
from mmkd.data import read_predictions
from mmkd.errors import UserError
from mmkd.hooks.teacher_views import training_images
from mmkd.registry import MODELS
from mmkd.teachers import PredictionsTeacher

TEACHER, CHECKPOINT = "configs/bccd/teacher.py", "data/bccd/teacher_atss_r18_narrow.pth"
FEW = ["--cfg-options", "train_dataloader.dataset.indices=5", "test_dataloader.num_workers=0"]


def run(out: Path, *options: Any, config: str = TEACHER, checkpoint: str = CHECKPOINT) -> None:
    predict.predict(predict.parse_args([config, checkpoint, "--out", str(out), *map(str, options)]))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of five images, one of them in a folder below."""
    found = sorted(Path("data/bccd/images/val").iterdir())[:5]
    (tmp_path / "images" / "below").mkdir(parents=True)
    for place, path in enumerate(found):
        shutil.copy(path, tmp_path / "images" / ("below" if place == 4 else "") / path.name)
    return tmp_path / "images"


def test_predicts_as_mmdet_does(images: Path, tmp_path: Path) -> None:
    run(tmp_path / "teacher.json", "--data", images, "--min-score", 0.3, "--batch-size", 2, "--workers", 1)
    found = read_predictions(tmp_path / "teacher.json")
    assert found.classes == ("Platelets", "RBC", "WBC")
    assert len(found) == 5
    model = init_detector(Config.fromfile(TEACHER), CHECKPOINT, device="cpu")
    for path in sorted(images.rglob("*.jpg")):
        expected = inference_detector(model, str(path)).pred_instances.numpy()
        expected = expected[expected.scores >= 0.3]
        said = found.of(found.find(str(path)))  # type: ignore[arg-type]
        assert said.labels_M.tolist() == expected.labels.tolist()
        np.testing.assert_allclose(said.scores_M, expected.scores, atol=1e-3)
        np.testing.assert_allclose(said.boxes_M4, expected.bboxes.clip(0, [320, 240] * 2), atol=0.02)
    assert 0.3 <= found.scores_N.min() < 0.5


def test_the_training_set_is_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "teacher", "--every", 2, *FEW)
    assert sorted(path.name for path in (tmp_path / "teacher").glob("*.json")) == [
        f"{n:06d}.json" for n in (1, 2, 3)
    ]
    cfg = Config.fromfile(TEACHER).train_dataloader.dataset
    cfg.indices = 5
    dataset = DATASETS.build(cfg)
    teacher = PredictionsTeacher(str(tmp_path / "teacher"))
    teacher.check_images(training_images(dataset))
    assert [*teacher.known.ids] == [dataset.get_data_info(i)["img_id"] for i in range(5)]
    assert teacher.known.names[0].startswith("images/train/")  # type: ignore[union-attr]
    assert "5 images, 5 of them predicted now" in capsys.readouterr().out


def test_a_coco_file_and_a_list(images: Path, tmp_path: Path) -> None:
    names = ["below/" + next((images / "below").iterdir()).name]
    coco = {"images": [{"id": 42, "file_name": names[0], "width": 320, "height": 240}]}
    (images / "some.json").write_text(json.dumps({**coco, "annotations": [], "categories": []}))
    (tmp_path / "some.txt").write_text(names[0] + "\n")
    run(tmp_path / "a", "--data", images / "some.json")
    run(tmp_path / "b", "--data", tmp_path / "some.txt", "--images", images)
    first, second = read_predictions(tmp_path / "a"), read_predictions(tmp_path / "b")
    assert first.names == second.names == names
    assert list(first.ids) == [42]
    assert first.boxes_N4.tolist() == second.boxes_N4.tolist() != []
    with pytest.raises(UserError, match="not found") as error:
        run(tmp_path / "c", "--data", tmp_path / "some.txt")
    assert "--images DIR" in str(error.value)


def test_goes_on_where_it_was_interrupted(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = tmp_path / "teacher.json", ("--data", images, "--batch-size", 2, "--workers", 0)
    run(tmp_path / "whole.json", *options)
    kind = MODELS.get("SingleStageDetector")
    asked: list[int] = []
    real = kind.test_step

    def step(self: Any, data: Any) -> Any:
        asked.append(len(data["inputs"]))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(self, data)

    monkeypatch.setattr(kind, "test_step", step)
    code = predict.main([TEACHER, CHECKPOINT, "--out", str(out), *map(str, options)])
    assert (code, out.exists()) == (130, False)
    assert "2 images are in" in capsys.readouterr().err
    asked[:] = [0, 0]
    run(out, *options)
    assert asked[2:] == [2, 1]
    whole, again = read_predictions(tmp_path / "whole.json"), read_predictions(out)
    assert again.names == whole.names
    np.testing.assert_array_equal(again.boxes_N4, whole.boxes_N4)
    run(out, *options)
    assert "5 images, 0 of them predicted now" in capsys.readouterr().out


def test_another_detector_is_not_mixed_in(images: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", "--data", images)
    content = torch.load(CHECKPOINT)
    content["state_dict"]["bbox_head.atss_cls.bias"] += 0.1
    torch.save(content, tmp_path / "other.pth")
    for named, options in (
        ("weights", {"checkpoint": str(tmp_path / "other.pth")}),
        ("min_score 0.2", {}),
        ("model and pipeline", {}),
        ("tta True", {}),
    ):
        more = {
            "min_score 0.2": ["--min-score", "0.2"],
            "model and pipeline": ["--cfg-options", "model.test_cfg.nms.iou_threshold=0.5"],
            "tta True": ["--tta"],
        }.get(named, [])
        with pytest.raises(UserError, match="of another run") as error:
            run(tmp_path / "out", "--data", images, *more, **options)
        assert named in str(error.value)
    run(tmp_path / "out", "--data", images)


def test_test_time_augmentation(images: Path, tmp_path: Path) -> None:
    shutil.rmtree(images / "below")
    run(tmp_path / "plain", "--data", images, "--min-score", 0.4)
    run(tmp_path / "tta", "--data", images, "--min-score", 0.4, "--tta")
    plain, more = read_predictions(tmp_path / "plain"), read_predictions(tmp_path / "tta")
    assert plain.names == more.names
    assert plain.boxes_N4.tolist() != more.boxes_N4.tolist()
    for one in range(4):  # and yet the surest box is an object that is found without it too
        surest_4 = more.of(one).boxes_M4[more.of(one).scores_M.argmax()]
        assert np.abs(plain.of(one).boxes_M4 - surest_4).max(1).min() < 12


def test_a_distilled_config_predicts_with_its_student(images: Path, tmp_path: Path) -> None:
    config = "configs/bccd/kd_features.py"
    student = MODELS.build(Config.fromfile("configs/bccd/student.py").model)
    student.bbox_head.atss_cls.bias.data.zero_()  # it finds something everywhere
    torch.save({"state_dict": student.state_dict()}, tmp_path / "student.pth")
    few = ("--data", images, "--min-score", 0)
    run(tmp_path / "out", *few, config=config, checkpoint=str(tmp_path / "student.pth"))
    found = read_predictions(tmp_path / "out")
    assert found.classes == ("Platelets", "RBC", "WBC")  # of the config: the checkpoint names none
    assert len(found.boxes_N4) > 0


def test_an_image_that_cannot_be_read(images: Path, tmp_path: Path) -> None:
    broken = sorted(images.glob("*.jpg"))[3]
    good = broken.read_bytes()
    broken.write_bytes(b"no image")
    options = ("--data", images, "--batch-size", 2, "--workers", 0)
    with pytest.raises(UserError, match="Cannot read") as error:
        run(tmp_path / "out", *options)
    assert broken.name in str(error.value)
    assert len(read_predictions(tmp_path / "out")) == 3
    broken.write_bytes(good)
    run(tmp_path / "out", *options)
    assert len(read_predictions(tmp_path / "out")) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.pkl"], "--out: needs a name ending in .json or without a suffix, found x.pkl"),
        (["--min-score", "1.5"], "--min-score: must be from 0 to 1, found 1.5"),
        (["--images", "data"], "--images requires --data"),
        (["--every", "0"], "--every: must be at least 1, found 0"),
        (["--batch-size", "0"], "--batch-size: must be at least 1, found 0"),
    ],
)
def test_wrong_words(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path / "out", *options)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--cfg-options", "train_dataloader="], "No images to predict"),
        (["--data", "configs"], "contains no images"),
    ],
)
def test_mistakes(tmp_path: Path, options: list[str], match: str) -> None:
    if "--cfg-options" in options:
        cfg = Config.fromfile(TEACHER)
        cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = None
        cfg.dump(tmp_path / "config.py")
        with pytest.raises(UserError, match=match):
            run(tmp_path / "out", config=str(tmp_path / "config.py"))
        return
    with pytest.raises(UserError, match=match):
        run(tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_names_tell_images_apart() -> None:
    named = predict._named
    found = [("data/a/images/1.jpg", "data/a/", 1), ("data/a/images/2.jpg", "data/a/", 2)]
    assert list(named(found)) == ["images/1.jpg", "images/2.jpg"]
    assert list(named([*found, found[0]])) == ["images/1.jpg", "images/2.jpg"]  # repeated
    both = [*found, ("/data/b/images/1.jpg", "/data/b", 1)]
    assert list(named(both)) == ["data/a/images/1.jpg", "data/a/images/2.jpg", "data/b/images/1.jpg"]
    assert named(both)["data/b/images/1.jpg"] == ("/data/b/images/1.jpg", 1)


def test_a_detector_that_reads_is_told_the_classes(images: Path) -> None:
    """As GroundingDINO and GLIP, whose pipelines keep these keys."""
    keys = ("img_id", "ori_shape", "text", "custom_entities")
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "PackDetInputs", "meta_keys": keys}]
    path = str(next(images.glob("*.jpg")))
    sample = predict._Images([path], pipeline, ["cat", "dog"])[0]["data_samples"]
    assert (sample.text, sample.custom_entities) == (("cat", "dog"), True)
