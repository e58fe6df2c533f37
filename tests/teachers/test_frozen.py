from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.compat import load_config
from mmkd.errors import UserError
from mmkd.teachers import FrozenTeacher, facts, forward

from ..conftest import batch, build, distilled, save_teacher, tiny_atss, tiny_teacher
from ..heads.cases import STOCK_CONFIGS, stock

LOGITS: frozenset[Any] = frozenset({"cls_logits"})
SHAPES = [(96, 128), (96, 128)]
IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return save_teacher(tmp_path / "teacher.pth", tiny_teacher())


def make(checkpoint: str | None, needs: frozenset[Any] = LOGITS, **overrides: Any) -> FrozenTeacher:
    entry = {"config": tiny_teacher(**overrides), "checkpoint": checkpoint, "precision": "fp32"}
    return FrozenTeacher(entry, needs, student=build(tiny_atss()))


def test_gives_what_the_stock_detector_gives(checkpoint: str) -> None:
    stock = build(tiny_teacher()).eval()
    stock.load_state_dict(torch.load(checkpoint)["state_dict"])
    inputs = torch.randn(2, 3, 96, 128)
    outputs = make(checkpoint)(inputs, SHAPES)
    with torch.no_grad():
        expected = stock(inputs, mode="tensor")
    assert outputs.cls_logits is not None
    for ours, theirs in zip(outputs.cls_logits, expected[0]):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # BatchNorm is folded
    assert not outputs.flat_cls_logits().requires_grad


def test_computes_only_what_is_asked_for(checkpoint: str) -> None:
    inputs = torch.randn(1, 3, 64, 64)
    logits = make(checkpoint)(inputs, [(64, 64)])
    assert logits.bbox_pred is None
    assert not logits.extra

    features = make(checkpoint, frozenset({"feats"}))
    assert not hasattr(features.model, "bbox_head")
    assert features(inputs, [(64, 64)]).cls_logits is None

    boxes = make(checkpoint, frozenset({"bbox_pred"}))
    assert boxes(inputs, [(64, 64)]).cls_logits is None
    ran: list[int] = []
    boxes.model.bbox_head.cls_convs[0].register_forward_hook(lambda _, __, out: ran.append(out.numel()))
    boxes(inputs, [(64, 64)])
    assert not any(ran), "no classification tower when only boxes are read"

    everything = make(checkpoint, frozenset({"cls_logits", "bbox_pred", "extra"}))(inputs, [(64, 64)])
    assert everything.bbox_pred is not None
    assert everything.bbox_pred[0].shape == (1, 4, 8, 8)
    assert everything.extra["centerness"][0].shape == (1, 1, 8, 8)


def test_stays_in_eval_mode_and_frozen(checkpoint: str) -> None:
    teacher = make(checkpoint)
    teacher(torch.randn(2, 3, 64, 64), [(64, 64)] * 2)
    teacher.model.train()
    before = copy.deepcopy(teacher.model.state_dict())
    teacher(torch.randn(2, 3, 64, 64), [(64, 64)] * 2)
    assert not teacher.model.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.model.state_dict().items())
    assert not any(p.requires_grad for p in teacher.model.parameters())


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_outputs_are_float32_that_losses_may_save(checkpoint: str, precision: str) -> None:
    entry = {"config": tiny_teacher(), "checkpoint": checkpoint, "precision": precision}
    teacher = FrozenTeacher(entry, frozenset({"feats", "cls_logits"}), build(tiny_atss()))
    inputs = torch.randn(2, 3, 96, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = teacher(inputs, SHAPES)
    exact = make(checkpoint, frozenset({"feats", "cls_logits"}))(inputs, SHAPES)
    for ours, theirs in zip(outputs.levels(), exact.levels(), strict=True):
        assert ours.dtype == torch.float32
        assert not ours.is_inference()
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()
        if precision == "fp32":
            assert torch.equal(ours, theirs), "autocast does not reach the teacher"
    student = torch.randn_like(outputs.flat_cls_logits(), requires_grad=True)
    (student * outputs.flat_cls_logits()).sum().backward()
    assert student.grad is not None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradient_through_its_layers(checkpoint: str, precision: str) -> None:
    """A loss may send the student's features through the teacher's head."""
    entry = {"config": tiny_teacher(), "checkpoint": checkpoint, "precision": precision}
    teacher = FrozenTeacher(entry, frozenset({"cls_logits", "layers"}), build(tiny_atss()))
    assert teacher.facts["left_out"] == []
    stock = build(tiny_teacher()).eval()
    stock.load_state_dict(torch.load(checkpoint)["state_dict"])
    teacher(torch.randn(1, 3, 96, 128), SHAPES[:1])  # in inference mode, before

    def boxes(model: Any, x: torch.Tensor) -> torch.Tensor:
        for layer in model.bbox_head.reg_convs:
            x = layer(x)
        return model.bbox_head.atss_reg(x)

    x = torch.randn(2, 64, 8, 8)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = teacher.through(boxes, ours)
    wanted = boxes(stock, theirs)
    found.square().sum().backward()
    wanted.square().sum().backward()
    assert found.dtype == torch.float32
    assert ours.grad is not None
    assert theirs.grad is not None
    tolerance = 1e-4 if precision == "fp32" else 0.06
    for a, b in ((found, wanted), (ours.grad, theirs.grad)):
        assert (a - b).norm() <= tolerance * b.norm()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


@pytest.mark.slow
def test_compiled(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for the real backend, which takes a minute to compile; new sizes are not traced again."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn, dynamic: compile_(fn, dynamic=dynamic, backend=backend))
    entry = {"config": tiny_teacher(), "checkpoint": checkpoint, "precision": "fp32"}
    teacher = FrozenTeacher({**entry, "compile": True}, LOGITS, build(tiny_atss()))
    plain = make(checkpoint)
    for images, shape in ((2, (96, 128)), (2, (64, 160)), (3, (128, 96))):
        inputs = torch.randn(images, 3, *shape)
        compiled, wanted = (which(inputs, [shape] * images) for which in (teacher, plain))
        torch.testing.assert_close(compiled.flat_cls_logits(), wanted.flat_cls_logits(), rtol=1e-4, atol=1e-4)
        graphs_now = len(graphs)
        teacher(inputs, [shape] * images)
        assert len(graphs) == graphs_now > 0


def test_what_does_not_compile(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("g++ not found\nwhatever")

    monkeypatch.setattr(torch, "compile", lambda fn, dynamic: no_compiler)
    entry = {"config": tiny_teacher(), "checkpoint": checkpoint, "compile": True}
    teacher = FrozenTeacher(entry, LOGITS, build(tiny_atss()))
    with pytest.raises(UserError, match=r"Cannot compile the teacher(.|\n)*RuntimeError: g\+\+ not found"):
        teacher(torch.randn(1, 3, 96, 128), SHAPES[:1])


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("compile", "True or False"),
        ("own_stream", "True or False"),
        ("precision", "one of auto, fp32, bf16, fp16, found 'yes'"),
    ],
)
def test_invalid_options(checkpoint: str, option: str, expected: str) -> None:
    entry = {"config": tiny_teacher(), "checkpoint": checkpoint, option: "yes"}
    with pytest.raises(UserError, match=f"teacher.{option} must be {expected}"):
        FrozenTeacher(entry, LOGITS, build(tiny_atss()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_stream_of_its_own_gives_the_same(checkpoint: str) -> None:
    student = build(tiny_atss()).cuda()
    entry = {"config": tiny_teacher(), "checkpoint": checkpoint, "precision": "fp32"}
    plain = FrozenTeacher(entry, LOGITS, student)
    beside = FrozenTeacher({**entry, "own_stream": True}, LOGITS, student)
    inputs, samples = torch.randn(2, 3, 96, 128).cuda(), batch()["data_samples"]
    answer = beside.ask(inputs, samples)
    torch.testing.assert_close(answer().flat_cls_logits(), plain.ask(inputs, samples)().flat_cls_logits())


def test_values_that_nobody_reads_cannot_be_read(checkpoint: str) -> None:
    outputs = make(checkpoint)(torch.randn(1, 3, 64, 64), [(64, 64)])
    assert {level.device.type for level in outputs.feats} == {"meta"}


def test_what_it_says_of_itself(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(forward, "print_log", lambda text, *_, **__: said.append(text))
    teacher = make(checkpoint)
    assert teacher.facts["batch_norm_folded"]
    teacher(torch.randn(1, 3, 64, 64), [(64, 64)])
    teacher(torch.randn(1, 3, 64, 64), [(64, 64)])
    assert said.count("the teacher runs in torch.float32 on cpu: set in the config") == 1


def test_building_leaves_the_random_numbers_alone(checkpoint: str) -> None:
    student = build(tiny_atss())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    FrozenTeacher({"config": tiny_teacher(), "checkpoint": checkpoint}, LOGITS, student)
    assert torch.equal(torch.rand(3), expected)


def test_different_pixels_same_answer(checkpoint: str) -> None:
    """A teacher with other normalisation sees the same image."""
    swapped = tiny_teacher()
    swapped.data_preprocessor.update(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395])
    swapped.data_preprocessor.bgr_to_rgb = False
    entry = {"config": swapped, "checkpoint": checkpoint, "precision": "fp32"}
    other = FrozenTeacher(entry, LOGITS, build(tiny_atss()))
    assert not other.pixels.is_identity
    inputs = torch.randn(2, 3, 64, 64)
    other_logits = other(inputs, [(64, 64)] * 2).flat_cls_logits()
    same_logits = make(checkpoint)(inputs.flip(1), [(64, 64)] * 2).flat_cls_logits()
    torch.testing.assert_close(other_logits, same_logits, rtol=1e-3, atol=1e-3)


def test_random_teacher_only_when_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, int]] = []
    monkeypatch.setattr(
        facts, "print_log", lambda text, _=None, logger=None, level=20: said.append((text, level))
    )
    assert make(None).class_names is None
    assert ("the teacher has no checkpoint: its weights are random", logging.WARNING) in said
    with pytest.raises(UserError, match="no checkpoint"):
        FrozenTeacher({"config": tiny_teacher()}, LOGITS, build(tiny_atss()))


def test_no_dense_detector() -> None:
    with pytest.raises(UserError, match="not registered.*\n.*\n.*NoSuchDetector"):
        FrozenTeacher({"config": {"type": "NoSuchDetector"}, "checkpoint": None}, LOGITS, build(tiny_atss()))
    two_stage = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
    with pytest.raises(UserError, match="no dense head like the student.*\n.*\n.*FasterRCNN"):
        FrozenTeacher({"config": two_stage, "checkpoint": None}, LOGITS, build(tiny_atss()))


def zoo_teacher(name: str, needs: frozenset[Any], student: str | None = None) -> FrozenTeacher:
    """A stock detector, whole but for its pretrained weights, as teacher."""
    cfg = load_config(STOCK_CONFIGS / name).model
    cfg.backbone.pop("init_cfg", None)
    cfg.pop("teacher_ckpt", None)
    own = stock("retinanet/retinanet_r18_fpn_1x_coco.py")
    own.bbox_head.num_classes = 80
    if student is not None:
        own = load_config(STOCK_CONFIGS / student).model
        own.backbone.pop("init_cfg", None)
    return FrozenTeacher({"config": cfg, "checkpoint": None, "precision": "fp32"}, needs, build(own))


def test_a_teacher_for_which_the_first_example_is_too_small() -> None:
    teacher = zoo_teacher("ssd/ssd300_coco.py", LOGITS, "ssd/ssd300_coco.py")
    assert teacher.forward.example.shape == (1, 3, 320, 320)
    outputs = teacher(torch.randn(1, 3, 300, 300), [(300, 300)])
    assert [level.shape[-1] for level in outputs.cls_logits or ()] == [38, 19, 10, 5, 3, 1]


def test_a_teacher_that_fails_in_channels_last(tmp_path: Path) -> None:
    """Convolutions with standardised weights, of which the backward pass is needed too."""
    weights = {"conv_cfg": {"type": "ConvWS"}, "norm_cfg": {"type": "GN", "num_groups": 4}}
    overrides = {f"neck__{key}": value for key, value in weights.items()}
    checkpoint = save_teacher(tmp_path / "teacher.pth", tiny_teacher(**overrides))
    stock_teacher = build(tiny_teacher(**overrides)).eval()
    stock_teacher.load_state_dict(torch.load(checkpoint)["state_dict"])
    teacher = make(checkpoint, **overrides)
    inputs = torch.randn(2, 3, 96, 128)
    found = teacher(inputs, SHAPES)
    with torch.no_grad():
        wanted = stock_teacher(inputs, mode="tensor")[0]
    for ours, theirs in zip(found.cls_logits or (), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    x = torch.randn(1, 3, 64, 64, requires_grad=True)
    teacher.through(lambda model, image: model.extract_feat(image)[0], x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    "name", ["ld/ld_r18-gflv1-r101_fpn_1x_coco.py", "lad/lad_r50-paa-r101_fpn_2xb8_coco_1x.py"]
)
def test_a_teacher_that_brings_a_teacher_of_its_own(name: str) -> None:
    """Only its student is built: the other teacher's config and weights are not needed."""
    needs = frozenset({"feats"}) if name.startswith("lad") else LOGITS
    student = None if name.startswith("lad") else "gfl/gfl_r50_fpn_1x_coco.py"
    teacher = zoo_teacher(name, needs, student)
    assert not teacher.model.training
    assert not hasattr(teacher.model, "teacher_model")
    assert len(teacher(torch.randn(1, 3, 64, 64), [(64, 64)]).feats) == 5


def test_a_teacher_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def broken(*_: Any) -> Any:
        tried.append(1)
        raise RuntimeError("carafe: implementation for device cpu not found.")

    monkeypatch.setattr("mmdet.models.necks.FPN.forward", broken)
    with pytest.raises(UserError, match=r"test run of[\s\S]*device cpu not found[\s\S]*tools/test.py"):
        make(None)
    assert len(tried) == 1, "no image of another size helps"


def test_a_teacher_of_grey_images_that_does_not_run() -> None:
    """What is wrong with it is told by an image that it takes."""
    broken = tiny_teacher(backbone__in_channels=1, neck__in_channels=[16, 32, 64, 999])
    with pytest.raises(UserError, match=r"test run of \w+ failed[\s\S]*999"):
        build(distilled(tiny_atss(), broken))


def test_grey_images(checkpoint: str) -> None:
    """A teacher of grey images, and one of coloured ones for a student of grey ones."""
    grey = {
        "backbone__in_channels": 1,
        "data_preprocessor__mean": [114.0],
        "data_preprocessor__std": [57.0],
        "data_preprocessor__bgr_to_rgb": False,
    }
    student = build(tiny_atss(**grey))
    of_grey = {"config": tiny_teacher(**grey), "checkpoint": None, "precision": "fp32"}
    of_colours = {"config": tiny_teacher(), "checkpoint": checkpoint, "precision": "fp32"}
    inputs = torch.randn(2, 1, 96, 128)
    alike = FrozenTeacher(of_grey, LOGITS, student)
    assert alike.pixels.is_identity
    assert alike(inputs, SHAPES).cls_logits is not None

    repeated = FrozenTeacher(of_colours, LOGITS, student)(inputs, SHAPES)
    pixels = (inputs * 57.0 + 114.0).repeat(1, 3, 1, 1)
    mean, std = (torch.tensor(IMAGENET[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    wanted = make(checkpoint)((pixels - mean) / std, SHAPES)
    torch.testing.assert_close(repeated.flat_cls_logits(), wanted.flat_cls_logits(), rtol=1e-4, atol=1e-4)

    with pytest.raises(
        UserError, match=r"numbers of image channels[\s\S]*3 \(the student's\)[\s\S]*1 \(the teacher's\)"
    ):
        FrozenTeacher(of_grey, LOGITS, build(tiny_atss()))(torch.randn(2, 3, 96, 128), SHAPES)
