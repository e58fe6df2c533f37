"""Teachers that give boxes: what the doctor says of a file of predictions, and of a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config, ConfigDict

from mmkd.doctor import Finding, TrainingSetup, examine
from mmkd.doctor.teacher_boxes import examine_boxes

from . import bccd

CLASSES = ("Platelets", "RBC", "WBC")


def predictions(
    folder: Path,
    change: Callable[[dict[str, Any]], object] = lambda content: None,
    which: str = "train",
) -> str:
    """The annotations as predictions that are sure of everything, changed."""
    content = json.loads(Path(f"data/bccd/annotations/{which}.json").read_text())
    for box in content["annotations"]:
        box["score"] = 0.9
    for image in content["images"]:
        image["file_name"] = f"{which}/{image['file_name']}"
    change(content)
    (folder / "teacher.json").write_text(json.dumps(content))
    return str(folder / "teacher.json")


def setup(teacher: dict[str, Any], *damages: Any, images: int = 40) -> TrainingSetup:
    """A student of BCCD with such a teacher."""

    def taught(cfg: Config) -> None:
        cfg.model.teacher = ConfigDict(teacher)
        cfg.model.distill = ConfigDict(boxes={"type": "TeacherBoxesLoss"})

    return bccd.setup(taught, *damages, images=images)


def found(teacher: dict[str, Any], *damages: Any) -> dict[str, Finding]:
    (section,) = examine(setup(teacher, *damages), ["teacher"])
    return {one.what: one for one in section.findings}


def test_a_good_file(tmp_path: Path) -> None:
    said = found({"predictions": predictions(tmp_path)})
    assert {one.level for one in said.values()} == {"ok"}, said
    assert "3941 boxes of 292 images" in said["teacher"].found
    assert "292 of 292 training images are in the file, 0 of them" in said["teacher: images"].found
    assert "Platelets 292, RBC 3348, WBC 301" in said["teacher: classes"].found
    assert "of the training annotations" in said["teacher: AP"].found
    assert float(said["teacher: AP"].found.split()[0]) > 0.95
    assert "all transforms" in said["teacher: pipeline"].found


def test_it_is_scored_on_the_validation_set_where_it_has_that(tmp_path: Path) -> None:
    def with_validation(content: dict[str, Any]) -> None:
        more = json.loads(Path("data/bccd/annotations/val.json").read_text())
        for image in more["images"]:
            image["id"] += 10_000
            image["file_name"] = f"val/{image['file_name']}"
        wrong = [
            {**box, "image_id": box["image_id"] + 10_000, "score": 0.9, "bbox": [1, 1, 9, 9]}
            for box in more["annotations"]
        ]
        content["images"] += more["images"]
        content["annotations"] += wrong

    said = found({"predictions": predictions(tmp_path, with_validation)})["teacher: AP"]
    assert "of the validation set" in said.found
    assert said.level == "error"
    assert float(said.found.split()[0]) < 0.05


@pytest.mark.parametrize("which", ["names", "list of results"])
def test_validation_images_are_not_taken_for_training_images(tmp_path: Path, which: str) -> None:
    """By names without folders, or ids that each annotation file begins anew."""

    def bare(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = image["file_name"].rpartition("/")[2]

    teacher: dict[str, Any] = {"predictions": predictions(tmp_path, bare)}
    if which != "names":
        results = json.loads(Path(teacher["predictions"]).read_text())["annotations"]
        Path(teacher["predictions"]).write_text(json.dumps(results))
        teacher["classes"] = list(CLASSES)
    said = found(teacher)
    assert "of the training annotations" in said["teacher: AP"].found
    assert said["teacher: AP"].level == said["teacher: images"].level == "ok"


def test_images_that_are_not_in_it(tmp_path: Path) -> None:
    def fewer(content: dict[str, Any]) -> None:
        gone = {image["id"] for image in content["images"][:10]}
        content["images"] = content["images"][10:]
        content["annotations"] = [box for box in content["annotations"] if box["image_id"] not in gone]

    said = found({"predictions": predictions(tmp_path, fewer)})["teacher: images"]
    assert (said.level, "282 of 292 training images" in said.found) == ("error", True)
    said = found({"predictions": predictions(tmp_path, which="val")})["teacher: images"]
    assert (said.level, "0 of 292 training images" in said.found) == ("error", True)
    assert "in the file val/BloodImage" in said.found


def test_images_of_another_size(tmp_path: Path) -> None:
    def larger(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["width"] *= 2

    said = found({"predictions": predictions(tmp_path, larger)})["teacher: image sizes"]
    assert (said.level, said.found.startswith("292 images differ in size")) == ("error", True)


def test_classes_that_the_student_does_not_have(tmp_path: Path) -> None:
    def other(content: dict[str, Any]) -> None:
        content["categories"] += [{"id": 99, "name": "dust"}]
        for box in content["annotations"][:5]:
            box["category_id"] = 99

    said = found({"predictions": predictions(tmp_path, other)})["teacher: classes"]
    assert said.level == "ok"
    assert "ignored 5 of 3941, of classes that the student does not have: dust" in said.found


def test_classes_that_it_does_not_know(tmp_path: Path) -> None:
    def renamed(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = "red cell"

    first = json.loads(Path("data/bccd/annotations/train.json").read_text())["categories"][0]["name"]
    path = predictions(tmp_path, renamed)
    said = found({"predictions": path})["teacher: classes"]
    assert (said.level, f"not in the file: {first}" in said.found) == ("error", True)
    mapped = found({"predictions": path, "class_map": {first: "red cell"}})
    assert {one.level for one in mapped.values()} == {"ok"}


def test_names_that_are_exchanged(tmp_path: Path) -> None:
    """As six classes of a real file were; nothing but a score tells it."""

    def exchanged(content: dict[str, Any]) -> None:
        one, other = (x for x in content["categories"] if x["name"] in ("RBC", "WBC"))
        one["name"], other["name"] = other["name"], one["name"]

    path = predictions(tmp_path, exchanged)
    said = found({"predictions": path})["teacher: class order"]
    assert said.level == "error"
    assert "RBC is predicted as WBC" in said.found
    assert "the class names in the file" in said.remedy
    mapping = {"RBC": "WBC", "WBC": "RBC"}
    assert str(mapping) in said.remedy or "{'WBC': 'RBC', 'RBC': 'WBC'}" in said.remedy
    assert found({"predictions": path, "class_map": mapping})["teacher: class order"].level == "ok"


def test_a_pipeline_that_boxes_cannot_follow(tmp_path: Path) -> None:
    def expand(cfg: Config) -> None:
        cfg.train_dataloader.dataset.pipeline.insert(2, {"type": "Expand"})

    said = found({"predictions": predictions(tmp_path)}, expand)
    assert (said["teacher: pipeline"].level, "Expand" in said["teacher: pipeline"].found) == ("error", True)
    assert said["teacher: AP"].level == "ok"


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = Path(predictions(tmp_path))
    path.write_text(path.read_text()[:-100])
    said = found({"predictions": str(path)})
    assert [one.level for one in said.values()] == ["error"]
    assert "Cannot read" in said["teacher"].found


def test_a_training_step_with_it(tmp_path: Path) -> None:
    (section,) = examine(setup({"predictions": predictions(tmp_path)}, images=4), ["training step"])
    losses = next(one for one in section.findings if one.what == "losses")
    assert "loss_kd_boxes" in losses.found


def one_box(images: list[Any]) -> list[dict[str, Any]]:
    return [{"boxes": [[9, 9, 90, 80]], "scores": [0.98], "labels": [2]} for _ in images]


def test_a_function_that_finds_what_is_there() -> None:
    truth: list[Any] = []

    def knows(images: list[Any]) -> list[dict[str, Any]]:
        return [{"boxes": boxes, "scores": [0.5] * len(boxes), "labels": labels} for boxes, labels in truth]

    training = setup({"type": "CallableTeacher", "function": knows, "classes": CLASSES})
    found = [sample.gt_instances for sample in training.batch()["data_samples"]]
    truth += [(one.bboxes.tensor, one.labels) for one in found]
    said = list(examine_boxes(training, training.cfg.model.teacher, 0))
    assert [one.level for one in said] == ["ok"]
    assert f"100% of {sum(map(len, found))} objects" in said[0].found


def test_a_function_that_finds_nothing_that_is_there() -> None:
    said = found({"type": "CallableTeacher", "function": one_box, "classes": CLASSES})
    one = said["teacher: function"]
    assert one.level == "warning"
    assert "WBC 4; scores from 0.98 to 0.98; 0% of" in one.found
    assert "in pixels of the input image" in one.remedy


def test_a_function_that_raises() -> None:
    def raises(images: list[Any]) -> Any:
        raise OSError("no connection")

    said = found({"type": "CallableTeacher", "function": raises, "classes": CLASSES})
    assert [(one.level, "no connection" in one.found) for one in said.values()] == [("error", True)]
