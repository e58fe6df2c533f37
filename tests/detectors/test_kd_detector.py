from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models.detectors import ATSS, FasterRCNN
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config

from mmkd.detectors.kd_detector import distilled_class
from mmkd.detectors.recipe import recommended
from mmkd.errors import UserError
from mmkd.functional import pearson_distance
from mmkd.registry import MODELS
from mmkd.teachers import plain_detector

from ..conftest import build, save_teacher, tiny_atss
from ..heads.cases import stock
from .test_kd_single_stage import train

NECK = {"neck": {"type": "PKDLoss"}}


def small(name: str) -> Any:
    """A zoo detector at a sixteenth of its width."""
    cfg = Config.fromfile(f"{_zoo()}/{name}").model
    cfg.backbone.init_cfg = None
    cfg.backbone.update(depth=18, base_channels=8)
    cfg.neck.in_channels = [8, 16, 32, 64][-len(cfg.neck.in_channels) :]
    return cfg


def _zoo() -> str:
    import mmdet

    return f"{Path(mmdet.__file__).parent}/.mim/configs"


def two_stage() -> Any:
    cfg = small("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")
    cfg.neck.out_channels = cfg.rpn_head.in_channels = cfg.rpn_head.feat_channels = 16
    cfg.roi_head.bbox_roi_extractor.out_channels = cfg.roi_head.bbox_head.in_channels = 16
    cfg.roi_head.bbox_head.update(fc_out_channels=16, num_classes=3)
    return cfg


def transformer() -> Any:
    cfg = small("deformable_detr/deformable-detr_r50_16xb2-50e_coco.py")
    cfg.bbox_head.num_classes = 3
    cfg.num_queries = 10
    cfg.encoder.num_layers = cfg.decoder.num_layers = 2
    return cfg


def batch(size: int = 96) -> Any:
    return demo_mm_inputs(2, [[3, size, size + 32], [3, size - 16, size]], num_classes=3)


def distilled(student: Any, checkpoint: str | None, **options: Any) -> Any:
    cfg = copy.deepcopy(student)
    cfg.update(
        type="KDDetector",
        student=student["type"],
        teacher={"config": {"model": student}, "checkpoint": checkpoint},
        distill=copy.deepcopy(options.pop("distill", NECK)),
        **options,
    )
    return cfg


def twin(cfg: Any, checkpoint: str) -> Any:
    """A student with its teacher's weights, in training mode."""
    cfg.teacher.precision = "fp32"
    model = build(cfg)
    model.load_state_dict(torch.load(checkpoint, weights_only=False)["state_dict"])
    return model.train()


@pytest.mark.parametrize("student", [two_stage, transformer, tiny_atss])
def test_weight_zero_is_the_stock_student_bit_for_bit(tmp_path: Path, student: Any) -> None:
    checkpoint = save_teacher(tmp_path / "teacher.pth", student())
    loss = {"type": "PKDLoss", "loss_weight": 0}
    ours = build(distilled(student(), checkpoint, distill={"neck": loss}))
    stock = build(student())
    data = batch()
    results = []
    for model in (ours, stock):
        torch.manual_seed(1)
        results.append(train(model, data))
    for a, b in zip(*results):
        assert a.pop("loss_kd_neck") == 0
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in b)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in stock.state_dict().items())


@pytest.mark.parametrize("student", [two_stage, transformer])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path, student: Any) -> None:
    checkpoint = save_teacher(tmp_path / "teacher.pth", student())
    model = twin(distilled(student(), checkpoint), checkpoint)
    # The teacher is in eval mode; so must the layers before the neck's output be.
    for module in model.modules():
        if isinstance(module, (torch.nn.modules.batchnorm._BatchNorm, torch.nn.Dropout)):
            module.eval()
    before = model.teacher.model.state_dict()
    data = model.data_preprocessor(batch(), True)
    same = model.loss(data["inputs"], data["data_samples"])["loss_kd_neck"]
    assert abs(float(same)) < 0.05
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("backbone"):
                parameter.add_(torch.randn_like(parameter) * parameter.abs().mean())
    other = model.loss(data["inputs"], data["data_samples"])["loss_kd_neck"]
    assert other > 10 * abs(same)
    other.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.teacher.model.state_dict().items())


class Doubling(FasterRCNN):
    """A student of a user's own."""

    def extract_feat(self, batch_inputs: torch.Tensor) -> Any:
        return tuple(2 * feat for feat in super().extract_feat(batch_inputs))


def test_what_a_student_overrides_stays() -> None:
    MODELS.register_module(module=Doubling, force=True)
    cfg = two_stage()
    cfg.type = "Doubling"
    model = build(distilled(cfg, None))
    assert isinstance(model, Doubling)
    inputs = torch.randn(1, 3, 64, 64)
    model.eval()
    once = FasterRCNN.extract_feat(model, inputs)
    assert all(torch.equal(a, 2 * b) for a, b in zip(model.extract_feat(inputs), once))
    assert plain_detector(distilled(cfg, None)) == cfg


def test_there_is_one_class_for_each_student() -> None:
    assert distilled_class(ATSS) is distilled_class(ATSS)
    assert distilled_class(distilled_class(ATSS)) is distilled_class(ATSS)
    assert issubclass(distilled_class(ATSS), ATSS)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (None, "not a registered detector(.|\n)*FasterRCNN"),
        ("FastererRCNN", "not a registered detector(.|\n)*FastererRCNN"),
        ("ResNet", "not a registered detector"),
        ("SoftTeacher", "has its own teacher"),
        ("LAD", "has its own teacher"),
    ],
)
def test_what_cannot_be_a_student(student: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build({"type": "KDDetector", "student": student, "distill": NECK})


def test_options_of_a_detector_with_a_teacher_of_its_own() -> None:
    with pytest.raises(UserError, match=r"has its own teacher \(teacher_ckpt\)"):
        build({**tiny_atss(), "type": "KDSingleStageDetector", "teacher_ckpt": "t.pth", "distill": NECK})
    ld = {**tiny_atss(), "type": "LAD", "teacher_ckpt": "t.pth"}
    with pytest.raises(UserError, match="LAD is not supported as a student"):
        recommended(ld, {"config": {"model": tiny_atss()}, "checkpoint": None}, None)


def test_unknown_options_and_places() -> None:
    with pytest.raises(UserError, match=r"KDDetector of FasterRCNN has no option roi_heads(.|\n)*roi_head\?"):
        build(distilled(two_stage(), None, roi_heads={}))
    loss = {"type": "DistillationLoss", "place": "nowhere"}
    with pytest.raises(UserError, match=r"distill.cls: unknown place(.|\n)*one of: dense, rpn"):
        build(distilled(two_stage(), None, distill={"cls": loss}))


def test_the_rpn_is_a_dense_place(tmp_path: Path) -> None:
    checkpoint = save_teacher(tmp_path / "teacher.pth", two_stage())
    losses = {
        "cls": {"type": "DistillationLoss", "place": "rpn", "region": "all"},
        "box": {"type": "BoxIoULoss", "place": "rpn"},
        "neck": {"type": "PKDLoss"},
    }
    model = twin(distilled(two_stage(), checkpoint, distill=losses), checkpoint)
    data = model.data_preprocessor(batch(), True)
    found = model.loss(data["inputs"], data["data_samples"])
    assert found["loss_kd_cls"] < 0.05
    with torch.no_grad():
        model.rpn_head.rpn_cls.weight.add_(1)
    moved = model.loss(data["inputs"], data["data_samples"])
    assert moved["loss_kd_cls"] > 10 * found["loss_kd_cls"]
    moved["loss_kd_cls"].backward()
    assert model.rpn_head.rpn_cls.weight.grad.abs().sum() > 0


def retina() -> Any:
    cfg = stock("retinanet/retinanet_r18_fpn_1x_coco.py")
    cfg.neck.out_channels = cfg.bbox_head.in_channels = cfg.bbox_head.feat_channels = 16
    return cfg


def narrow_atss() -> Any:
    return tiny_atss(neck__out_channels=16, bbox_head__in_channels=16)


@pytest.mark.parametrize(
    ("student", "teacher", "levels"),
    [
        (retina, two_stage, [1, 2, 3, 4]),
        (two_stage, retina, [None, 0, 1, 2, 3]),
        (two_stage, narrow_atss, [None, 0, 1, 2, 3]),
    ],
)
def test_pairs_of_two_kinds_by_features(
    tmp_path: Path, student: Any, teacher: Any, levels: list[Any]
) -> None:
    losses = {"pkd": {"type": "PKDLoss", "loss_weight": 1.0}, "fgd": {"type": "FGDLoss"}}
    cfg = distilled(student(), None, distill=losses)
    cfg.teacher = {"config": {"model": teacher()}, "checkpoint": None, "precision": "fp32"}
    with pytest.raises(UserError, match=re.escape(f"set teacher.levels={levels}")):
        build(cfg)
    cfg.teacher.levels = levels
    model = build(cfg)
    data = model.data_preprocessor(batch(), True)
    own = model.extract_feat(data["inputs"])
    found = model.loss(data["inputs"], data["data_samples"])
    with torch.no_grad():
        taught = model.teacher.model.extract_feat(data["inputs"])
    facing = [(own[i], taught[level]) for i, level in enumerate(levels) if level is not None]
    expected = sum(pearson_distance(a, b) for a, b in facing)
    torch.testing.assert_close(found["loss_kd_pkd"], expected, rtol=1e-4, atol=1e-5)
    assert found["loss_kd_fgd"] > 0
