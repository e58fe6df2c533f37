from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.heads.observe import observe
from mmkd.outputs.place import PLACES, Reading
from mmkd.outputs.queries import Queries
from mmkd.structures import RowOutputs

from ..conftest import build, tiny_atss
from ..detectors.test_kd_detector import distilled
from ..detectors.test_kd_single_stage import train
from .queries import (
    FAMILIES,
    LAYERS,
    OF_MASKS,
    QUERIES,
    SOFTMAX,
    batch,
    last_part,
    losses_of,
    opinionated,
    parts,
    tiny,
    twins,
    unsettle,
)


def on_logits(family: str, **options: Any) -> dict[str, Any]:
    return {
        "type": "DistillationLoss",
        "activation": "softmax" if family in SOFTMAX else "sigmoid",
        **options,
    }


def boxes(family: str, **options: Any) -> dict[str, Any]:
    """A loss on boxes, of those that have some."""
    return {} if family in OF_MASKS else {"boxes": {"type": "BoxIoULoss", "place": "queries", **options}}


def seen_in_training(model: Any, data: Any = None) -> tuple[Reading, RowOutputs]:
    """What student and teacher say at their queries in one step."""
    place = PLACES["queries"]
    data = model.data_preprocessor(batch() if data is None else data, True)
    inputs, samples = data["inputs"], data["data_samples"]
    with place.watch(model) as seen:
        model.loss(inputs, samples)
    reading = place.read(model, seen, (), samples, None)
    answer = model.teacher.ask(inputs, samples)()
    return reading, model.teacher.at(place, answer, reading.question)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path, family: str) -> None:
    last = {"place": f"queries.{last_part(family)}"}
    model = twins(
        tiny(family),
        tmp_path,
        every=on_logits(family, region="all"),
        last=on_logits(family, region="all", **last),
        objects=on_logits(family, **last),
        **boxes(family, **last),
    )
    found = losses_of(model)
    compared = found.keys() - {"every"}
    assert all(found[name] < 1e-4 for name in compared)
    unsettle(model)
    moved = losses_of(model)
    assert all(moved[name] > 10 * found[name] for name in compared)
    sum(moved.values()).backward()
    for part in parts(model).values():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert all(p.grad is None for p in model.teacher.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_face_those_that_say_the_same(tmp_path: Path, family: str) -> None:
    model = twins(tiny(family), tmp_path, cls=on_logits(family))
    reading, said = seen_in_training(model)
    layers = PLACES["queries"].parts(model)
    assert layers == last_part(family) + 1
    assert len(reading.outputs.cls_logits_NK) == layers * 2 * QUERIES, "neither denoising nor dense queries"
    assert reading.outputs.spec == PLACES["queries"].spec(model)
    partner_N = Queries().match(model, reading, said)
    own = reading.context.valid_N[-2 * QUERIES :]
    assert torch.equal(partner_N[-2 * QUERIES :][own], torch.arange(len(said.cls_logits_NK)))
    # The first layer's queries face others, but each another one.
    for image in range(2):
        rows = partner_N[image * QUERIES : (image + 1) * QUERIES]
        assert len(rows[rows >= 0].unique()) == (rows >= 0).sum() > 0
        assert torch.equal(said.image_N[rows[rows >= 0]], torch.full_like(rows[rows >= 0], image))


@pytest.mark.parametrize("family", ["DETR", "DINO", "DDQDETR", "SparseRCNN"])
def test_objects_are_those_of_the_students_own_matching(tmp_path: Path, family: str) -> None:
    model = twins(tiny(family), tmp_path, cls=on_logits(family))
    data = model.data_preprocessor(batch(), True)
    place = PLACES["queries"]
    with place.watch(model) as seen:
        model.loss(data["inputs"], data["data_samples"])
    reading = place.read(model, seen, (), data["data_samples"], None)
    labels_LBQ = reading.context.labels_N.unflatten(0, (LAYERS, 2, QUERIES))
    objects = [len(sample.gt_instances) for sample in data["data_samples"]]
    expected = [[min(count, QUERIES) for count in objects]] * LAYERS
    assert ((labels_LBQ >= 0) & (labels_LBQ < 3)).sum(-1).tolist() == expected
    for image, sample in enumerate(data["data_samples"]):
        given = labels_LBQ[-1, image]
        assert sorted(given[(given >= 0) & (given < 3)].tolist()) == sorted(
            sample.gt_instances.labels.tolist()
        )


def test_the_teachers_order_does_not_matter(tmp_path: Path) -> None:
    model = twins(tiny("DABDETR"), tmp_path, cls=on_logits("DABDETR"))
    with torch.no_grad():
        model.decoder.layers[0].ffn.layers[1].weight.add_(0.1)
    reading, said = seen_in_training(model)
    own, taught, context = Queries().pair(model, reading, said)
    shuffled = said.take(torch.randperm(len(said.cls_logits_NK)))
    _, other, other_context = Queries().pair(model, reading, shuffled)
    assert torch.equal(context.valid_N, other_context.valid_N)
    assert torch.equal(taught.cls_logits_NK, other.cls_logits_NK)
    assert torch.equal(taught.boxes_N4, other.boxes_N4)
    assert own is reading.outputs


def test_the_surest_of_the_teachers_queries_take_part(tmp_path: Path) -> None:
    model = twins(tiny("DABDETR"), tmp_path, cls=on_logits("DABDETR"))
    reading, said = seen_in_training(model)
    twice = RowOutputs(
        spec=said.spec,
        cls_logits_NK=torch.cat([said.cls_logits_NK - 5, said.cls_logits_NK]),
        boxes_N4=said.boxes_N4.repeat(2, 1),
        image_N=said.image_N.repeat(2),
    )
    partner_N = Queries().match(model, reading, twice)
    assert partner_N.min() == len(said.cls_logits_NK), "the second half is surer"
    few = said.take(torch.tensor([3, 4, 12]))
    _, _, context = Queries().pair(model, reading, few)
    valid_LBQ = context.valid_N.unflatten(0, (LAYERS, 2, QUERIES))
    assert valid_LBQ.sum(-1).tolist() == [[2, 1]] * LAYERS
    model.bbox_head.test_cfg.max_per_img = 4
    partner_N = Queries().match(model, reading, said)
    for image in range(2):
        theirs = (said.image_N == image).nonzero().squeeze(1)
        best = set(theirs[said.top_scores()[theirs].topk(4).indices].tolist())
        rows = partner_N.unflatten(0, (LAYERS, 2, QUERIES))[:, image]
        assert all(set(layer[layer >= 0].tolist()) == best for layer in rows)


def test_a_teacher_that_says_nothing_teaches_nothing(tmp_path: Path) -> None:
    model = twins(tiny("DABDETR"), tmp_path, cls=on_logits("DABDETR", region="all"))
    reading, said = seen_in_training(model)
    own, taught, context = Queries().pair(model, reading, said.take(torch.zeros(0, dtype=torch.long)))
    assert not context.valid_N.any()
    loss = model.distill.cls(own, taught, context)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_images_without_objects(tmp_path: Path, family: str) -> None:
    model = twins(
        tiny(family),
        tmp_path,
        objects=on_logits(family),
        every=on_logits(family, region="teacher"),
        **boxes(family),
    )
    data = batch()
    for sample in data["data_samples"]:
        sample.gt_instances = sample.gt_instances[:0]
    if family == "DDQDETR":  # whose auxiliary loss needs one
        data["data_samples"][0].gt_instances = batch()["data_samples"][0].gt_instances
    found = losses_of(model, data)
    assert all(torch.isfinite(value) for value in found.values())
    if family != "DDQDETR":
        assert found["objects"] == 0
    assert found["every"] > 0
    sum(found.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_denoising_changes_nothing(tmp_path: Path) -> None:
    values = []
    for count in (4, 100):
        cfg = tiny("DINO")
        cfg.dn_cfg.group_cfg.num_dn_queries = count
        model = twins(cfg, tmp_path, cls=on_logits("DINO", region="all"), box={"type": "BoxIoULoss"})
        with torch.no_grad():
            for parameter in model.backbone.layer4.parameters():
                parameter.mul_(1.1)
        torch.manual_seed(3)
        with observe(model.bbox_head) as seen:
            values.append(losses_of(model))
        assert seen.raw[0][0].shape[2] > QUERIES, "there are denoising queries"
    assert values[0]["cls"] > 0
    for name, value in values[0].items():
        torch.testing.assert_close(value, values[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["DABDETR", "DINO", "QueryInst"])
def test_weight_zero_is_the_stock_student_bit_for_bit(tmp_path: Path, family: str) -> None:
    cfg = tiny(family)
    checkpoint = opinionated(tmp_path / "teacher.pth", cfg)
    losses = {"cls": on_logits(family, loss_weight=0), "box": {"type": "BoxIoULoss", "loss_weight": 0}}
    data = batch()
    results = []
    for model_cfg in (distilled(cfg, checkpoint, distill=losses), cfg):
        model = build(model_cfg)
        torch.manual_seed(1)
        results.append((train(model, data), model.state_dict()))
    (ours, state), (stock, expected) = results
    for a, b in zip(ours, stock):
        assert a.pop("loss_kd_cls") == a.pop("loss_kd_box") == 0
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in b)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_a_student_with_weights_above_zero_draws_no_numbers_of_its_own(tmp_path: Path) -> None:
    cfg = tiny("DINO")
    data, after = batch(), []
    for weight in (0, 1):
        model = build(distilled(cfg, None, distill={"cls": on_logits("DINO", loss_weight=weight)})).train()
        torch.manual_seed(1)
        losses_of(model, copy.deepcopy(data))
        after.append(torch.rand(1))
    assert after[0] == after[1]


def test_the_teacher_encodes_a_batch_once(tmp_path: Path) -> None:
    model = twins(
        tiny("DINO"),
        tmp_path,
        cls=on_logits("DINO"),
        box={"type": "BoxIoULoss", "place": "queries"},
        neck={"type": "PKDLoss"},
    )
    losses_of(model)  # in the first step the teacher makes sure of its accelerations
    calls = {"encoder": 0, "decoder": 0}

    def count(name: str) -> Any:
        def add(*_: Any) -> None:
            calls[name] += 1

        return add

    for name in calls:
        getattr(model.teacher.model, name).register_forward_hook(count(name))
    losses_of(model)
    assert calls == {"encoder": 1, "decoder": 1}


PAIRS = [
    ("DINO", "DeformableDETR"),
    ("DETR", "DeformableDETR"),
    ("DDQDETR", "SparseRCNN"),
    ("SparseRCNN", "DABDETR"),
]


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_teachers_of_another_family(tmp_path: Path, teacher: str, student: str) -> None:
    losses = {
        "box": {"type": "BoxIoULoss", "place": "queries"},
        "neck": {"type": "PKDLoss"},
        "cls": on_logits(student, region="teacher"),
    }
    if teacher in SOFTMAX:  # whose scores are no sigmoids
        losses = {"box": {"type": "BoxIoULoss", "place": "queries", "region": "foreground"}}
    if {teacher, student} != {"DINO", "DeformableDETR"}:
        losses.pop("neck", None)
    other = tiny(teacher, queries=14)
    cfg = distilled(tiny(student), opinionated(tmp_path / "teacher.pth", other), distill=losses)
    cfg.teacher.config.model = other
    model = build(cfg).train()
    found = losses_of(model)
    assert all(value > 0 for value in found.values())
    assert found.keys() == losses.keys()


def test_a_dense_teacher_of_a_transformer_by_features() -> None:
    teacher = tiny_atss(neck__start_level=1, neck__num_outs=4)
    teacher.neck.out_channels = 256
    teacher.bbox_head.in_channels = 256
    teacher.bbox_head.anchor_generator.strides = [8, 16, 32, 64]
    cfg = distilled(tiny("DINO"), None, distill={"neck": {"type": "PKDLoss"}})
    cfg.teacher.config.model = teacher
    found = losses_of(build(cfg).train())
    assert found["neck"] > 0
    cfg.distill = {"cls": on_logits("DINO", region="all")}
    with pytest.raises(UserError, match="has no predictions at the student's place: it has no queries"):
        build(cfg)


def test_what_cannot_be_compared() -> None:
    cfg = distilled(tiny("DeformableDETR"), None, distill={"cls": on_logits("DINO")})
    cfg.teacher.config.model = tiny("DETR")
    with pytest.raises(UserError, match="3 classes, sigmoid(.|\n)*3 classes, softmax with background"):
        build(cfg)
    cfg.teacher.config.model = tiny("DINO", classes=5)
    cfg.distill = {"box": {"type": "BoxIoULoss", "place": "queries", "region": "foreground"}}
    with pytest.raises(UserError, match="different classes, by which their queries are matched"):
        build(cfg)
    cfg.teacher.config.model = tiny("DINO")
    cfg.distill = {"cls": on_logits("DINO", place="queries.2")}
    with pytest.raises(UserError, match="no such stage(.|\n)*queries.0 to queries.1"):
        build(cfg)
    cfg.distill = {"box": {"type": "LocalizationDistillationLoss"}}
    with pytest.raises(UserError, match="does not support place='queries'"):
        build(cfg)


def test_a_teacher_with_more_classes_gives_the_students_by_name(tmp_path: Path) -> None:
    teacher = tiny("DINO", classes=5)
    names = ["a", "b", "c", "d", "e"]
    checkpoint = opinionated(tmp_path / "t.pth", teacher, dataset_meta={"classes": names})
    cfg = distilled(tiny("DINO"), checkpoint, distill={"cls": on_logits("DINO", region="teacher")})
    cfg.teacher.config.model = teacher
    model = build(cfg).train()
    model.check_class_names({"classes": ["e", "a", "c"]})
    model._classes_checked = True
    _, said = seen_in_training(model)
    assert said.cls_logits_NK.shape == (2 * QUERIES, 3)
    assert losses_of(model)["cls"] > 0
