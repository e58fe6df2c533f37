"""The scripts in examples/ that bring detectors of other frameworks, each with its real package."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmkd.data import read_predictions
from mmkd.registry import MODELS

from .conftest import ROOT, batch, build, tiny_atss

HOW = "pip install '.[examples]'"
CLASSES = ["Platelets", "RBC", "WBC"]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [*sys.path])  # which it changes
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(Path("data/bccd/images/val").iterdir())[:2]:
        shutil.copy(path, folder)
    turned = Image.open(next(folder.iterdir()))
    turned.getexif()[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=turned.getexif())  # 240 px wide as it is seen
    return folder


def check(out: Path, images: Path) -> Any:
    found = read_predictions(out)
    assert list(found.classes) == CLASSES
    assert sorted(found.names) == sorted(path.name for path in images.iterdir())  # type: ignore[type-var]
    assert found.of(found.find("turned.jpg")).size == (240, 320)  # type: ignore[arg-type]
    assert all(len(found.of(i).boxes_M4) for i in range(3))
    return found


def test_torchvision(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models", reason=HOW)
    example = script("teacher_torchvision", monkeypatch)
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"  # the smaller of the two
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=4).eval()
    torch.save(model.state_dict(), tmp_path / "detector.pth")
    out = tmp_path / "teacher.json"
    arguments = [str(images), "--out", str(out), "--weights", str(tmp_path / "detector.pth")]
    example.main([*arguments, "--model", name, "--device", "cpu", "--classes", *CLASSES])
    found = check(out, images)
    path = min(images.iterdir())
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
    with torch.no_grad():
        (expected,) = model([pixels])
    said = found.of(found.find(path.name))
    np.testing.assert_allclose(said.scores_M, expected["scores"], atol=1e-4)
    np.testing.assert_allclose(said.boxes_M4, expected["boxes"], atol=0.03)
    assert said.labels_M.tolist() == (expected["labels"] - 1).tolist()


def test_train_torchvision(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision.models", reason=HOW)
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = script("train_torchvision", monkeypatch)
    labels = json.loads(Path("data/bccd/annotations/val.json").read_text())
    labels["images"] = [each for each in labels["images"] if (images / each["file_name"]).exists()]
    known = {each["id"] for each in labels["images"]}
    labels["annotations"] = [each for each in labels["annotations"] if each["image_id"] in known]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    backbone = MODELS.build({"type": "MobileNetV2", "out_indices": (2,)})
    backbone.eval()
    torch.save({"state_dict": backbone.state_dict()}, tmp_path / "backbone.pth")

    model = example.build(3, str(tmp_path / "backbone.pth"), 64).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        theirs = torch.nn.Sequential(*[model.backbone.body[str(i)] for i in range(7)])(image)
        torch.testing.assert_close(theirs, backbone(image)[0])

    out = tmp_path / "teacher.json"
    arguments = [str(tmp_path / "labels.json"), str(images), "--out", str(out), "--device", "cpu"]
    example.main([*arguments, "--batch-size", "2", "--epochs", "2", "--size", "96"])
    found = read_predictions(out)
    assert list(found.classes) == CLASSES
    assert len(found.names) == 3
    trained = torch.load(tmp_path / "teacher.pth", weights_only=True)
    first = next(iter(example.build(3, None, 96).state_dict()))
    assert first in trained


def test_transformers(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason=HOW)
    example = script("teacher_transformers", monkeypatch)
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 40], depths=[1] * 4, layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[24, 32, 40], encoder_hidden_dim=32, d_model=32,
        decoder_in_channels=[32] * 3, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2,
        decoder_attention_heads=2, decoder_layers=1, num_queries=10, num_denoising=0,
        id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    model = transformers.RTDetrForObjectDetection(config).eval()
    processor = transformers.RTDetrImageProcessor(size={"height": 96, "width": 96})
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    out = tmp_path / "teacher"
    arguments = [str(images), "--out", str(out), "--model", str(tmp_path / "model"), "--device", "cpu"]
    example.main([*arguments, "--min-score", "0.0001"])
    found = check(out, images)
    path = min(images.iterdir())
    inputs = processor(images=Image.open(path), return_tensors="pt")
    with torch.no_grad():
        (expected,) = processor.post_process_object_detection(
            model(**inputs), threshold=0, target_sizes=[(240, 320)], use_focal_loss=True
        )
    said = found.of(found.find(path.name))
    assert said.class_scores_MK.shape == (len(said.boxes_M4), 3)
    np.testing.assert_allclose(said.class_scores_MK.max(1), said.scores_M, atol=2e-3)
    np.testing.assert_allclose(said.scores_M.max(), expected["scores"].max(), atol=1e-4)
    best_4 = expected["boxes"][0].clamp(min=0).minimum(torch.tensor([320, 240] * 2))
    np.testing.assert_allclose(said.boxes_M4[said.scores_M.argmax()], best_4, atol=0.05)


class WhiteRectangle(torch.nn.Module):
    """Finds what is white, and answers as a detector that MMDeploy has exported."""

    def forward(self, images_1CHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        white_HW = (images_1CHW[0].amin(0) > 0.8).float()
        rows, columns = (white_HW.amax(side).nonzero() for side in (1, 0))
        corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        box_5 = torch.stack([*(corner.float() for corner in corners), white_HW.amax() * 0.75])
        return torch.stack([box_5, torch.zeros_like(box_5)])[None], torch.tensor([[1, -1]])


def test_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason=HOW)
    pytest.importorskip("onnx", reason=HOW)
    file = str(tmp_path / "detector.onnx")
    torch.onnx.export(
        WhiteRectangle(),
        (torch.ones(1, 3, 8, 9),),
        file,
        input_names=["input"],
        output_names=["dets", "labels"],
        dynamic_axes={"input": {2: "height", 3: "width"}},
        dynamo=False,
    )
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    teacher = {
        "type": "CallableTeacher",
        "function": "teacher_onnxruntime:Detector",
        "options": {"file": file, "mean": [0, 0, 0], "std": [255, 255, 255]},
        "classes": CLASSES,
    }
    student = {**tiny_atss(), "type": "KDDetector", "student": "ATSS"}
    loss = {"type": "TeacherBoxesLoss", "min_score": 0.5}
    model = build({**student, "teacher": teacher, "distill": {"boxes": loss}})  # type: ignore[arg-type]
    data = batch((96, 128), (64, 96))
    for number, image_CHW in enumerate(data["inputs"]):
        image_CHW[:] = 0
        image_CHW[:, 10:30, 20 + number : 60] = 255
    ready = model.data_preprocessor(data, True)
    found = model.teacher.detect(ready["inputs"], ready["data_samples"])
    assert [one.bboxes.tolist() for one in found] == [[[20, 10, 60, 30]], [[21, 10, 60, 30]]]
    assert [(one.scores.tolist(), one.labels.tolist()) for one in found] == [([0.75], [1])] * 2
    model.check_class_names({"classes": CLASSES})
    model._classes_checked = True  # by the Runner's data set, in training
    assert model.loss(ready["inputs"], ready["data_samples"])["loss_kd_boxes"] > 0
