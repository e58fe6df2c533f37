"""Teachers that give boxes alone: predictions in a file, a function."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mmkd.errors import UserError
from mmkd.functional import pairwise_iou
from mmkd.hooks.teacher_views import trace, training_images
from mmkd.teachers import CachedTeacher, PredictionsTeacher, build_teacher

from ..conftest import batch, build, tiny_atss
from ..outputs.queries import tiny

DETECTIONS: frozenset[Any] = frozenset({"detections"})
META = {"classes": ("cat", "dog", "pig")}
SIZE = (160, 120)


def predictions(folder: Path, names: list[str], classes: tuple[str, ...] = META["classes"]) -> str:
    """A file with one box for each image: class number = image number."""
    content = {
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
        "images": [
            {"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for i, name in enumerate(names)
        ],
        "annotations": [
            {"image_id": i, "category_id": i % len(classes), "bbox": [40, 30, 80, 60], "score": 0.75}
            for i in range(len(names))
        ],
    }
    path = folder / "teacher.json"
    path.write_text(json.dumps(content))
    return str(path)


def dataset(folder: Path, count: int = 3, *transforms: dict[str, Any]) -> Any:
    """Images that are white where their object is, which the annotations know."""
    init_default_scope("mmdet")
    images, annotations = [], []
    for i in range(count):
        pixels = np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8)
        pixels[30:90, 40:120] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]})
        annotations.append(
            {
                "id": i,
                "image_id": i,
                "category_id": i % 3,
                "bbox": [40, 30, 80, 60],
                "area": 4800,
                "iscrowd": 0,
            }
        )
    categories = [{"id": i, "name": name} for i, name in enumerate(META["classes"])]
    (folder / "train.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return DATASETS.build(
        {
            "type": "CocoDataset",
            "metainfo": META,
            "data_root": str(folder),
            "ann_file": "train.json",
            "data_prefix": {"img": ""},
            "pipeline": [
                {"type": "LoadImageFromFile"},
                {"type": "LoadAnnotations", "with_bbox": True},
                *transforms,
                {"type": "PackDetInputs"},
            ],
        }
    )


def detector(cfg: Any, teacher: Any, **losses: Any) -> Any:
    losses = losses or {"boxes": {"type": "TeacherBoxesLoss"}}
    return build(
        ConfigDict({**cfg, "type": "KDDetector", "student": cfg.type, "teacher": teacher, "distill": losses})
    ).train()


def loaded(data: Any, model: Any) -> Any:
    samples = [data[i] for i in range(len(data))]
    batched = {
        "inputs": [one["inputs"] for one in samples],
        "data_samples": [one["data_samples"] for one in samples],
    }
    return model.data_preprocessor(batched, True)


def test_a_file_teaches_what_the_annotations_would(tmp_path: Path) -> None:
    """Boxes of the file go through flips, crops and resizes as annotations do."""
    data = dataset(
        tmp_path,
        3,
        {"type": "RandomResize", "scale": (160, 120), "ratio_range": (0.8, 1.5), "keep_ratio": True},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "RandomCrop", "crop_size": (100, 120)},
    )
    model = detector(tiny_atss(), {"predictions": predictions(tmp_path, [f"{i}.png" for i in range(3)])})
    trace(data)
    model.check_class_names(META)
    model._classes_checked = True
    for seed in range(4):
        np.random.seed(seed)
        ready = loaded(data, model)
        found = model.teacher.detect(ready["inputs"], ready["data_samples"])
        for one, sample in zip(found, ready["data_samples"]):
            torch.testing.assert_close(one.bboxes, sample.gt_instances.bboxes, atol=1e-3, rtol=0)
            assert torch.equal(one.labels, sample.gt_instances.labels)
            assert one.scores.tolist() == [0.75] * len(one)
        losses = model.loss(ready["inputs"], ready["data_samples"])
        own = [losses[name] for name in ("loss_cls", "loss_bbox", "loss_centerness")]
        torch.testing.assert_close(losses["loss_kd_boxes"], sum(sum(part) for part in own), rtol=1e-2, atol=0)


def test_names_decide_classes_never_positions(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    trace(data)
    path = predictions(tmp_path, [f"{i}.png" for i in range(3)], ("pig", "hog", "Hund"))
    model = detector(tiny_atss(), {"predictions": path, "class_map": {"cat": "hog", "dog": "Hund"}})
    model.check_class_names(META)
    ready = loaded(data, model)
    found = model.teacher.detect(ready["inputs"], ready["data_samples"])
    assert [one.labels.tolist() for one in found] == [[2], [0], [1]]
    with pytest.raises(UserError, match="lacks some"):
        detector(tiny_atss(), {"predictions": path}).check_class_names(META)
    with pytest.raises(UserError, match="has no class names"):
        detector(tiny_atss(), {"predictions": path}).check_class_names({})


def test_a_class_that_is_not_the_students_is_left_out(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    trace(data)
    path = predictions(tmp_path, [f"{i}.png" for i in range(3)], ("cow", "cat", "dog", "pig"))
    model = detector(tiny_atss(), {"predictions": path})
    model.check_class_names(META)
    ready = loaded(data, model)
    found = model.teacher.detect(ready["inputs"], ready["data_samples"])
    assert [one.labels.tolist() for one in found] == [[], [0], [1]]


def test_predictions_of_other_images(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    images = training_images(data)
    assert [Path(path).name for path, _ in images] == ["0.png", "1.png", "2.png"]
    with pytest.raises(UserError, match="do not cover these images") as error:
        PredictionsTeacher(predictions(tmp_path, ["a.png"])).check_images(images)
    assert "0 of them" in str(error.value)
    with pytest.raises(UserError, match="do not cover all training images"):
        PredictionsTeacher(predictions(tmp_path, ["0.png"])).check_images(images)


def test_an_image_of_another_size(tmp_path: Path) -> None:
    data = dataset(tmp_path, 1)
    trace(data)
    teacher = PredictionsTeacher(predictions(tmp_path, ["0.png"]))
    Image.new("RGB", (80, 60)).save(tmp_path / "0.png")
    sample = data[0]["data_samples"]
    with pytest.raises(UserError, match="a different size"):
        teacher.detect(torch.zeros(1, 3, 60, 80), [sample])


def test_samples_without_a_view(tmp_path: Path) -> None:
    data = dataset(tmp_path, 1)
    teacher = PredictionsTeacher(predictions(tmp_path, ["0.png"]))
    with pytest.raises(UserError, match="TeacherViewsHook"):
        teacher.detect(torch.zeros(1, 3, 120, 160), [data[0]["data_samples"]])


def test_a_loss_on_logits_is_refused(tmp_path: Path) -> None:
    path = predictions(tmp_path, ["0.png"])
    with pytest.raises(UserError, match="does not provide what the losses need"):
        detector(tiny_atss(), {"predictions": path}, cls={"type": "DistillationLoss"})


def bright(images: list[Any]) -> list[dict[str, Any]]:
    """Find what is white."""
    answers = []
    for image in images:
        assert image.dtype == np.uint8
        rows, columns = np.nonzero(image.min(2) > 200)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        answers.append({"boxes": [box], "scores": [0.5], "labels": [1], "class_scores": [[0.2, 0.5, 0.3]]})
    return answers


def callable_teacher(**options: Any) -> dict[str, Any]:
    return {"type": "CallableTeacher", "function": bright, "classes": META["classes"], **options}


def test_a_function_sees_the_students_view_in_rgb(tmp_path: Path) -> None:
    data = dataset(tmp_path, 2, {"type": "Resize", "scale": (80, 60), "keep_ratio": True})
    pixels = np.zeros((120, 160, 3), dtype=np.uint8)
    pixels[..., 0] = 200  # red
    Image.fromarray(pixels).save(tmp_path / "0.png")
    seen = []

    def function(images: list[Any]) -> list[dict[str, Any]]:
        seen.extend(images)
        assert torch.is_inference_mode_enabled()
        return [{"boxes": [], "scores": [], "labels": []}] * len(images)

    model = detector(tiny_atss(), callable_teacher(function=function))
    ready = loaded(data, model)
    assert [len(one) for one in model.teacher.detect(ready["inputs"], ready["data_samples"])] == [0, 0]
    assert seen[0].shape == (60, 80, 3)
    assert seen[0][30, 40].tolist() == [200, 0, 0]
    assert seen[1][30, 40].tolist() == [255] * 3


def test_a_function_finds_boxes_in_the_view(tmp_path: Path) -> None:
    data = dataset(
        tmp_path,
        3,
        {"type": "Resize", "scale": (80, 60), "keep_ratio": True},
        {"type": "RandomFlip", "prob": 0.5},
    )
    model = detector(tiny_atss(), callable_teacher())
    ready = loaded(data, model)
    found = model.teacher.detect(ready["inputs"], ready["data_samples"])
    for one, sample in zip(found, ready["data_samples"]):
        torch.testing.assert_close(one.bboxes, sample.gt_instances.bboxes, atol=1.0, rtol=0)
        assert one.class_scores.shape == (1, 3)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ({"boxes": [[1, 2, 3, 4]], "scores": [0.5]}, "labels"),
        ({"boxes": [[1, 2, 3, 4]], "scores": [0.5, 0.6], "labels": [1]}, "as many boxes"),
        ({"boxes": [[1, 2, 3, 4]], "scores": [float("nan")], "labels": [1]}, "NaN"),
        ({"boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": [3]}, "labels from 0 to 2"),
        ({"boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": [0], "class_scores": [[1]]}, "class_scores"),
        (None, "a dict with"),
    ],
)
def test_a_wrong_answer_of_a_function(answer: Any, match: str) -> None:
    model = detector(tiny_atss(), callable_teacher(function=lambda images: [answer] * len(images)))
    data = model.data_preprocessor(batch(), True)
    with pytest.raises(UserError, match=match):
        model.teacher.detect(data["inputs"], data["data_samples"])


def test_a_function_that_raises_or_forgets_an_image() -> None:
    def raises(images: list[Any]) -> Any:
        raise KeyError("weights")

    for function, match in ((raises, "KeyError"), (lambda images: [], "2 predictions")):
        model = detector(tiny_atss(), callable_teacher(function=function))
        data = model.data_preprocessor(batch(), True)
        with pytest.raises(UserError, match=match):
            model.teacher.detect(data["inputs"], data["data_samples"])


@pytest.mark.parametrize("name", ["json", "nowhere.at_all:predict", "json:predict"])
def test_a_function_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match="Cannot import the teacher's function"):
        detector(tiny_atss(), callable_teacher(function=name))


def test_a_function_is_cached(tmp_path: Path) -> None:
    asked = []

    class Counting:
        def __call__(self, images: list[Any]) -> list[dict[str, Any]]:
            asked.extend(images)
            return bright(images)

    data = dataset(tmp_path, 2)
    model = detector(
        tiny_atss(), callable_teacher(function=Counting(), cache={"dir": str(tmp_path / "cache")})
    )
    assert isinstance(model.teacher, CachedTeacher)
    model.teacher.for_pipeline("as it is")
    model._classes_checked = True
    ready = loaded(data, model)
    values = [model.loss(ready["inputs"], ready["data_samples"])["loss_kd_boxes"] for _ in range(2)]
    assert len(asked) == 2
    assert values[0] > 0
    assert torch.equal(*values)


@pytest.mark.parametrize("student", [tiny_atss, lambda: tiny("DINO")], ids=["dense", "queries"])
def test_rows_face_the_boxes_that_they_overlap(tmp_path: Path, student: Any) -> None:
    data = dataset(tmp_path, 2)
    losses = {
        "cls": {"type": "DistillationLoss", "region": "all", "place": "boxes"},
        "box": {"type": "BoxIoULoss", "region": "all", "place": "boxes"},
    }
    said = [[0.0, 0, 9, 9]]

    def function(images: list[Any]) -> list[dict[str, Any]]:
        return [{"boxes": said, "scores": [0.5], "labels": [1], "class_scores": [[0.2, 0.5, 0.3]]}] * 2

    model = detector(student(), callable_teacher(function=function), **losses)
    model._classes_checked = True
    ready = loaded(data, model)
    pairs: list[Any] = []
    model.distill.box.register_forward_pre_hook(lambda _, args: pairs.append(args))
    model.loss(ready["inputs"], ready["data_samples"])
    boxes_N4 = pairs.pop()[0].flat_boxes().detach()
    inside = (boxes_N4[:, :2] > 0).all(1) & (boxes_N4[:, 2:] < torch.tensor(SIZE) - 1).all(1)
    said[0] = (boxes_N4[inside][0] + 1).tolist()  # near one that the student gives
    found = model.loss(ready["inputs"], ready["data_samples"])
    ((own, taught, context),) = pairs
    valid = context.valid_N
    assert valid.any()
    assert not valid.all()
    near = pairwise_iou(own.flat_boxes().detach(), taught.flat_boxes()).diagonal() >= 0.5
    assert near[valid].all()
    torch.testing.assert_close(
        taught.flat_cls_logits()[valid].sigmoid(),
        torch.tensor([[0.2, 0.5, 0.3]]).expand(int(valid.sum()), 3),
    )
    assert found["loss_kd_cls"] > 0
    sum(found[f"loss_kd_{name}"] for name in losses).backward()


def test_the_whole_teacher_is_built_by_its_entry(tmp_path: Path) -> None:
    student = build(tiny_atss())
    teacher = build_teacher({"predictions": predictions(tmp_path, ["0.png"])}, DETECTIONS, student)
    assert isinstance(teacher.inner, PredictionsTeacher)  # type: ignore[attr-defined]
    assert teacher.facts["classes"] == list(META["classes"])
    with pytest.raises(UserError, match="no option"):
        build_teacher({"predictions": "x.json", "threshold": 3}, DETECTIONS, student)
    assert isinstance(dataset(tmp_path).pipeline, Compose)
