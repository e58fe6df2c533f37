from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmkd.detectors.mixed import any_unlabelled, times_zero, with_boxes, without_objects
from mmkd.errors import UserError

from ..conftest import batch, build, distilled, losses_of, save_teacher, tiny_atss, tiny_teacher
from ..outputs import instances, queries, two_stage
from .test_kd_detector import distilled as distilled_any

CLS = {"cls": {"type": "DistillationLoss", "region": "teacher"}}
BOX = {"type": "BoxIoULoss", "region": "foreground"}
SHAPES = ((64, 96), (96, 96), (96, 64))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    init_default_scope("mmdet")
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pth", tiny_teacher())


def student(checkpoint: str | None, **options: Any) -> Any:
    """Its backbone's statistics rest, so that an image is seen alike in any batch."""
    own = tiny_atss(backbone__norm_eval=True)
    return build(distilled(own, tiny_teacher(), checkpoint, **options)).train()


def alone() -> Any:
    return build(tiny_atss(backbone__norm_eval=True)).train()


def mixed(*unlabelled: int, data: Any = None, empty: bool = True) -> dict[str, Any]:
    """A batch of which these images are marked as unlabelled; their boxes may stay to be looked at."""
    data = batch(*SHAPES) if data is None else data
    for index in unlabelled:
        sample = data["data_samples"][index]
        sample.set_metainfo({"labelled": False})
        if empty:
            sample.gt_instances = sample.gt_instances[:0]
    return data


def only(data: dict[str, Any], model: Any, *index: int) -> dict[str, Any]:
    """The losses of some of the images, padded as in the whole batch."""
    processed = model.data_preprocessor(copy.deepcopy(data), True)
    return model.loss(processed["inputs"][list(index)], [processed["data_samples"][i] for i in index])


def kd(losses: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in losses.items() if "kd" in key}


def gradients(model: Any, losses: dict[str, Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.parse_losses(losses)[0].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def answering(model: Any, found: list[InstanceData]) -> list[int]:
    """Have the teacher find these objects; gives how many images it was asked about each time."""
    asked: list[int] = []

    def detect(inputs_BCHW: torch.Tensor, data_samples: Any) -> list[InstanceData]:
        asked.append(len(inputs_BCHW))
        assert len(data_samples) == len(inputs_BCHW)
        return found[: len(inputs_BCHW)]

    model.teacher.detect = detect
    return asked


def objects(*scores: float) -> InstanceData:
    boxes_G4 = torch.tensor([[8.0, 8, 40, 40], [20, 20, 60, 60], [4, 30, 30, 62]])[: len(scores)]
    labels_G = torch.arange(3)[: len(scores)]
    return InstanceData(bboxes=boxes_G4, labels=labels_G, scores=torch.tensor(scores))


# --- who sees what


def test_own_losses_are_of_labelled_images_and_distillation_of_all(checkpoint: str) -> None:
    model, stock = student(checkpoint, distill=CLS), alone()
    data = mixed(1)
    losses = losses_of(model, data)
    wanted = only(data, stock, 0, 2)
    for key, value in wanted.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-5, atol=1e-7)
    # With every image labelled the distillation is the same: objects do not matter to it.
    every = losses_of(student(checkpoint, distill=CLS), batch(*SHAPES))
    torch.testing.assert_close(losses["loss_kd_cls"], every["loss_kd_cls"])
    assert (
        losses["loss_kd_cls"]
        != losses_of(student(checkpoint, distill=CLS), batch(*SHAPES, seed=1))["loss_kd_cls"]
    )

    of_all = gradients(model, losses)
    own = gradients(stock, wanted)
    taught_model = student(checkpoint, distill=CLS, task_loss_weight=0)
    taught = gradients(taught_model, losses_of(taught_model, batch(*SHAPES)))
    for name, gradient in own.items():
        torch.testing.assert_close(of_all[name], gradient + taught[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("distill", "runs"),
    [
        (CLS, {"backbone": [3], "head": [3, 2]}),
        ({"neck": {"type": "PKDLoss"}}, {"backbone": [3], "head": [2]}),
        ({"cls": {**CLS["cls"], "loss_weight": 0}}, {"backbone": [2], "head": [2]}),
    ],
    ids=["outputs", "features", "nothing"],
)
def test_what_runs_how_often(checkpoint: str, distill: dict[str, Any], runs: dict[str, list[int]]) -> None:
    """The backbone once; the head on all images only where a loss reads it; the others not for nothing."""
    model = student(checkpoint, distill=distill)
    seen: dict[str, list[int]] = {"backbone": [], "head": []}
    model.backbone.register_forward_pre_hook(lambda _, args: seen["backbone"].append(len(args[0])))
    model.bbox_head.register_forward_pre_hook(lambda _, args: seen["head"].append(len(args[0][0])))
    losses_of(model, mixed(1))
    assert seen == runs


def test_weight_zero_is_the_stock_student_on_the_labelled_images(checkpoint: str) -> None:
    model = student(checkpoint, distill={"cls": {**CLS["cls"], "loss_weight": 0}})
    stock, data = alone(), mixed(0)
    losses, wanted = losses_of(model, data), only(data, stock, 1, 2)
    assert losses.pop("loss_kd_cls") == 0
    assert losses.keys() == wanted.keys()
    found = gradients(model, losses_of(model, data))
    for name, gradient in gradients(stock, wanted).items():
        assert torch.equal(found[name], gradient), name


@pytest.mark.parametrize("distill", [CLS, {"neck": {"type": "FitNetsLoss"}}], ids=["outputs", "features"])
def test_without_a_labelled_image_the_task_has_no_part(checkpoint: str, distill: dict[str, Any]) -> None:
    model = student(checkpoint, distill=distill)
    losses = losses_of(model, mixed(0, 1, 2))
    own = {key: value for key, value in losses.items() if "kd" not in key}
    assert set(own) == {"loss_cls", "loss_bbox", "loss_centerness"}
    assert all(float(torch.as_tensor(value).sum()) == 0 for value in own.values())
    assert all(value > 0 for value in kd(losses).values())
    found = gradients(model, losses)
    assert all(p is not None for p in found.values()), "DistributedDataParallel waits for all"
    assert found["neck.fpn_convs.0.conv.weight"].abs().sum() > 0
    assert found["bbox_head.atss_reg.weight"].abs().sum() == 0


def test_half_precision(checkpoint: str) -> None:
    wanted = losses_of(student(checkpoint, distill=CLS), mixed(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = losses_of(student(checkpoint, distill=CLS), mixed(1))
    for key in ("loss_cls", "loss_kd_cls"):
        own, exact = (float(torch.as_tensor(losses[key]).sum()) for losses in (found, wanted))
        assert own == pytest.approx(exact, rel=0.02), key


# --- the teacher's boxes for annotated objects


@pytest.mark.parametrize(
    "loss",
    [
        {"type": "DistillationLoss", "region": "foreground"},
        {"type": "DistillationLoss", "normalizer": "foreground", "region": "all"},
        {"type": "FGDLoss", "loss_weight": 1.0},
        {"type": "QualityLoss", "normalizer": "centerness"},
        {"type": "DistillationLoss", "region": "all", "valid": "loss"},
        {"type": "CrossKDLoss", "layer": 1, "align": False, "losses": {"box": BOX}},
    ],
    ids=lambda loss: loss["type"],
)
def test_losses_that_ask_for_objects_are_given_the_teachers(checkpoint: str, loss: dict[str, Any]) -> None:
    model = student(checkpoint, distill={"x": loss})
    asked = answering(model, [objects(0.9, 0.3, 0.29)])
    found = kd(losses_of(model, mixed(1)))
    assert asked == [1]
    data = batch(*SHAPES)
    two = objects(0.9, 0.3)
    data["data_samples"][1].gt_instances = InstanceData(bboxes=two.bboxes, labels=two.labels)
    assert found == pytest.approx(kd(losses_of(student(checkpoint, distill={"x": loss}), data)), rel=1e-5)
    lower = student(checkpoint, distill={"x": loss}, pseudo_score=0.2)
    answering(lower, [objects(0.9, 0.3, 0.29)])
    if loss.get("valid") != "loss":
        assert kd(losses_of(lower, mixed(1))) != found


def test_the_teachers_own_boxes(checkpoint: str) -> None:
    model = student(checkpoint, distill={"x": {"type": "DistillationLoss"}}, pseudo_score=0.05)
    data = mixed(1)
    processed = model.data_preprocessor(copy.deepcopy(data), True)
    (found,) = model.teacher.detect(processed["inputs"][1:2], processed["data_samples"][1:2])
    assert (found.scores >= 0.05).sum() > 0
    answered = student(checkpoint, distill={"x": {"type": "DistillationLoss"}}, pseudo_score=0.05)
    answering(answered, [found])
    assert kd(losses_of(model, data)) == kd(losses_of(answered, data))


def test_autocast_of_the_student_does_not_reach_the_teachers_boxes(checkpoint: str) -> None:
    model = student(checkpoint, distill={"cls": {"type": "DistillationLoss"}})
    seen: list[torch.dtype] = []

    def detect(inputs_BCHW: torch.Tensor, data_samples: Any) -> list[InstanceData]:
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return [objects(0.9)] * len(inputs_BCHW)

    model.teacher.detect = detect
    with torch.autocast("cpu", torch.bfloat16):
        losses_of(model, mixed(1))
    assert seen == [torch.float32]


def test_boxes_of_the_teacher_teach_on_every_image(checkpoint: str) -> None:
    """`TeacherBoxesLoss` has the student's own losses of all images, with the teacher's boxes."""
    terms = {"boxes": {"type": "TeacherBoxesLoss", "min_score": 0.05}}
    losses = losses_of(student(checkpoint, distill=terms), mixed(1))
    every = losses_of(student(checkpoint, distill=terms), batch(*SHAPES))
    torch.testing.assert_close(losses["loss_kd_boxes"], every["loss_kd_boxes"])
    torch.testing.assert_close(losses["loss_cls"], only(mixed(1), alone(), 0, 2)["loss_cls"])


def test_of_averaged_teachers_the_first_finds_the_objects(checkpoint: str) -> None:
    entry = {"config": tiny_teacher(), "checkpoint": checkpoint, "precision": "fp32"}
    cfg = distilled(tiny_atss(backbone__norm_eval=True), tiny_teacher(), checkpoint, pseudo_score=0.05)
    cfg.teacher = [entry, entry]
    one = student(checkpoint, pseudo_score=0.05)
    assert kd(losses_of(build(cfg).train(), mixed(1))) == pytest.approx(kd(losses_of(one, mixed(1))))


def test_others_do_not_ask_the_teacher_to_detect(checkpoint: str) -> None:
    model = student(checkpoint, distill={**CLS, "neck": {"type": "PKDLoss"}, "box": {"type": "BoxIoULoss"}})
    asked = answering(model, [])
    losses_of(model, mixed(1))
    assert not asked


def test_annotations_of_unlabelled_images_are_not_looked_at(checkpoint: str) -> None:
    """Whoever marks labelled images so, to leave their labels out, gets what he asked for."""
    terms = {
        "x": {"type": "DistillationLoss", "region": "foreground"},
        "neck": {"type": "FGDLoss", "loss_weight": 1.0},
    }
    results = []
    for empty in (True, False):
        model = student(checkpoint, distill=terms)
        answering(model, [objects(0.9)])
        results.append(losses_of(model, mixed(1, empty=empty)))
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value)


# --- other kinds of students


def test_two_stage_students_sample_around_the_teachers_boxes(tmp_path: Path) -> None:
    cfg = two_stage.small(two_stage.MASK)
    terms = {
        "rois": {"type": "DistillationLoss", "activation": "softmax", "region": "all"},
        "masks": {"type": "DistillationLoss", "place": "masks", "region": "all"},
        "rpn": {"type": "DistillationLoss", "place": "rpn"},
        "neck": {"type": "PKDLoss"},
    }
    model = two_stage.pair(tmp_path, cfg, cfg, terms)
    asked = answering(model, [objects(0.9, 0.8)])
    losses = two_stage.losses_of(model, mixed(1, data=two_stage.batch()))
    assert asked == [1]
    assert set(kd(losses)) == {f"loss_kd_{name}" for name in terms}
    assert all(value > 0 for value in kd(losses).values())
    assert losses["loss_mask"] > 0
    assert gradients(model, losses)["roi_head.mask_head.conv_logits.weight"].abs().sum() > 0
    answering(model, [objects(), objects()])
    nothing = two_stage.losses_of(model, mixed(0, 1, data=two_stage.batch()))
    assert nothing["loss_kd_rois"] > 0
    assert nothing["loss_kd_masks"] == 0


@pytest.mark.parametrize("family", ["DeformableDETR", "DINO", "SparseRCNN", "Mask2Former"])
def test_students_with_queries(family: str, tmp_path: Path) -> None:
    cfg = queries.tiny(family)
    terms = {
        "cls": {"type": "DistillationLoss", "region": "all"},
        "object": {"type": "DistillationLoss", "region": "foreground"},
        "neck": {"type": "PKDLoss"},
    }
    if family in queries.SOFTMAX:
        terms["cls"]["activation"] = terms["object"]["activation"] = "softmax"
    teacher = queries.opinionated(tmp_path / "teacher.pth", cfg)
    model = build(distilled_any(cfg, teacher, distill=terms)).train()
    queries.unsettle(model)
    asked = answering(model, [objects(0.9)])
    losses = losses_of(model, mixed(1, data=queries.batch()))
    assert asked == [1]
    assert all(value > 0 for value in kd(losses).values())
    own = {key: value for key, value in losses.items() if "kd" not in key}
    found = gradients(model, losses)
    assert all(torch.isfinite(p).all() for p in found.values() if p is not None)
    data = model.data_preprocessor(mixed(1, data=queries.batch()), True)
    stock = build(cfg).train()
    assert own.keys() == stock.loss(data["inputs"][:1], data["data_samples"][:1]).keys()
    answering(model, [objects(), objects(0.9)])
    nothing = losses_of(model, mixed(0, 1, data=queries.batch()))
    assert all(float(torch.as_tensor(nothing[key]).sum()) == 0 for key in own if "loss" in key)


def test_features_of_a_transformer_alone(tmp_path: Path) -> None:
    cfg = queries.tiny("DeformableDETR")
    teacher = queries.opinionated(tmp_path / "teacher.pth", cfg)
    model = build(distilled_any(cfg, teacher, distill={"neck": {"type": "PKDLoss"}})).train()
    calls: list[int] = []
    model.decoder.register_forward_hook(lambda *_: calls.append(1))
    losses = losses_of(model, mixed(0, data=queries.batch()))
    assert losses["loss_kd_neck"] > 0
    assert len(calls) == 1, "only for the student's own losses"


@pytest.mark.parametrize("family", ["RTMDet-Ins", "BoxInst", "SOLOv2"])
def test_students_of_masks_in_one_stage(family: str, tmp_path: Path) -> None:
    """Whose heads change the samples, read more of objects than boxes, or learn nothing without objects."""
    cfg = instances.tiny(family)
    terms = {"x": {"type": "DistillationLoss", "region": "foreground"}, "neck": {"type": "PKDLoss"}}
    model = build(distilled_any(cfg, instances.opinionated(tmp_path / "t.pth", cfg), distill=terms)).train()
    for unlabelled in ((1,), (0, 1)):
        answering(model, [objects(0.9, 0.8)] * 2)
        losses = instances.losses_of(model, mixed(*unlabelled, data=instances.batch()))
        assert all(value > 0 for value in kd(losses).values())
        assert all(p is not None for p in gradients(model, losses).values())


# --- parts


def test_what_stands_for_annotations() -> None:
    sample = batch((64, 96))["data_samples"][0]
    own = sample.gt_instances
    found = with_boxes(sample, objects(0.9, 0.8))
    assert sample.gt_instances is own
    assert sorted(found.gt_instances.keys()) == ["bboxes", "labels"]
    assert found.img_shape == (64, 96)
    assert "ignored_instances" in found
    own.bboxes = HorizontalBoxes(own.bboxes)
    boxes = with_boxes(sample, objects(0.9)).gt_instances.bboxes
    assert isinstance(boxes, HorizontalBoxes)
    assert len(without_objects(sample, torch.zeros(1)).gt_instances) == 0


@pytest.mark.parametrize("kind", [BitmapMasks, PolygonMasks])
def test_masks_are_the_whole_boxes(kind: Any) -> None:
    sample = batch((64, 96))["data_samples"][0]
    sample.gt_instances = sample.gt_instances[:0]
    sample.gt_instances.masks = kind([], 64, 96)
    masks = with_boxes(sample, objects(0.9, 0.8)).gt_instances.masks
    assert isinstance(masks, kind)
    bits = masks.to_ndarray()
    assert bits.shape == (2, 64, 96)
    assert bits.sum(axis=(1, 2)).tolist() == [32 * 32, 40 * 40]
    assert bits[0, 8:40, 8:40].all()
    assert len(without_objects(sample, torch.zeros(1)).gt_instances.masks) == 0


def test_a_batch_is_mixed_if_one_image_is_marked() -> None:
    data = batch(*SHAPES)
    assert not any_unlabelled(torch.zeros(3), data["data_samples"])
    assert any_unlabelled(torch.zeros(3), mixed(2)["data_samples"])
    data["data_samples"][0].set_metainfo({"labelled": True})
    assert not any_unlabelled(torch.zeros(3), data["data_samples"])


def test_times_zero_keeps_the_gradient() -> None:
    x = torch.ones((), requires_grad=True)
    unused = torch.ones((), requires_grad=True)
    for given in ({"loss_a": x * 2, "loss_b": [x, x * 3]}, {"loss_b": [x, x * 3], "loss_a": x * 2}):
        x.grad = unused.grad = None
        losses = times_zero({**given, "acc": torch.tensor(50.0)}, [x, unused])
        assert losses["acc"] == 50
        (losses["loss_a"] + sum(losses["loss_b"])).backward()
        assert x.grad == unused.grad == 0


@pytest.mark.parametrize("score", [-0.1, 1.5, "0.5", None, True])
def test_the_score_of_boxes_is_a_score(score: Any) -> None:
    with pytest.raises(UserError, match="pseudo_score must be a number"):
        student(None, pseudo_score=score)
