"""What an adapter says of a head is what the head does itself, for every head that is served."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.errors import UserError
from mmkd.heads import adapter_for
from mmkd.heads.observe import observe
from mmkd.losses import DistillLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs
from mmkd.teachers.pruning import skip_unread

from ..conftest import batch, build, distilled, losses_of
from .cases import CASES, ITS_OWN, Case, built, recorded, stock

EVERYTHING: frozenset[Any] = frozenset({"feats", "cls_logits", "bbox_pred", "extra"})
SHAPES = [(96, 128), (64, 100)]  # of the images; the second is padded
BOXES = [[20.0, 12.0, 84.0, 60.0], [30.0, 8.0, 94.0, 56.0]]  # one object on each
LABELS = [0, 2]

each_head = pytest.mark.parametrize("case", CASES, ids=lambda case: case.head)
each_that_trains = pytest.mark.parametrize("case", [c for c in CASES if c.trains], ids=lambda case: case.head)


@pytest.fixture(autouse=True)
def _first_epoch(_clean_state: None) -> None:
    """TOOD chooses its assigner and loss by the epoch that the Runner tells."""
    MessageHub.get_current_instance().update_info("epoch", 0)


def two_images() -> dict[str, Any]:
    data = batch(*SHAPES, boxes=1)
    for sample, box, label in zip(data["data_samples"], BOXES, LABELS):
        sample.gt_instances = InstanceData(bboxes=torch.tensor([box]), labels=torch.tensor([label]))
    return data


def opinionated(case: Case) -> tuple[Any, list[Tensor]]:
    """A detector in eval mode whose head has opinions, and something to have opinions on."""
    model, feats = built(case)
    return model.eval(), feats


def ask(head: Any, feats: list[Tensor]) -> DenseOutputs:
    adapter = adapter_for(head)
    outputs = adapter.outputs(head, feats, head(tuple(feats)), EVERYTHING)
    return DenseOutputs(**{**vars(outputs), "boxes": adapter.boxes(head, outputs)})


@each_head
def test_layout(case: Case) -> None:
    model, feats = opinionated(case)
    head = model.bbox_head
    assert type(head).__name__ == case.head.partition(",")[0]
    with torch.no_grad():
        outputs = ask(head, feats)
        raw = head(tuple(feats))
    spec = outputs.spec
    assert spec.num_classes == 3
    assert (spec.cls_channels, spec.use_sigmoid) == ((4, False) if case.softmax else (3, True))
    assert spec.num_base_priors == case.priors
    assert spec.in_channels == tuple(level.shape[1] for level in feats)
    assert len(spec.strides) == len(feats)
    assert all(abs(level.shape[3] * x - 128) < x for (x, _), level in zip(spec.strides, feats))
    N = sum(2 * f.shape[2] * f.shape[3] * A for f, A in zip(feats, case.priors))
    assert outputs.flat_cls_logits().shape == (N, spec.cls_channels)
    assert outputs.flat_bbox_pred().shape == (N, case.channels)
    assert outputs.flat_boxes().shape == (N, 4)
    assert tuple(outputs.extra) == case.quality
    assert all(outputs.flat_extra(name).shape == (N,) for name in case.quality)
    assert all(outputs.flat_extra(name).min() < -0.01 for name in case.quality), "before the sigmoid"
    assert (case.logits == ITS_OWN) == all(
        torch.equal(a, b) for a, b in zip(outputs.cls_logits or (), raw[0])
    )
    few = adapter_for(head).outputs(head, feats, raw, frozenset({"feats"}))
    assert few.cls_logits is few.bbox_pred is None
    assert few.extra == {}


@each_head
def test_boxes_and_scores_are_those_that_the_head_predicts(case: Case) -> None:
    """Each box of its own, with score and class, is that of a prior; and each prior's is among its own."""
    model, feats = opinionated(case)
    head = model.bbox_head
    cfg = copy.deepcopy(head.test_cfg)
    cfg.update(score_thr=-1.0, conf_thr=-1.0, nms_pre=10**6, min_bbox_size=-1, max_per_img=10**6)
    cfg.update(score_voting=False, nms={"type": "nms", "iou_threshold": 1.0})
    head.with_score_voting = False
    if case.head == "SSDHead":  # without which mmdet 3.3's cannot predict
        head.loss_cls = None
    metas = [{"img_shape": shape, "scale_factor": (1, 1)} for shape in SHAPES]
    with torch.no_grad():
        outputs = ask(head, feats)
        raw = copy.deepcopy(head(tuple(feats)))  # YOLOv3 changes it
        extras = {} if case.head != "PAAHead" else {"with_nms": True}
        found = head.predict_by_feat(
            *raw, batch_img_metas=metas, cfg=cfg, rescale=False, **{"with_nms": False, **extras}
        )
    logits_NK = outputs.flat_cls_logits().double()
    scores_NK = logits_NK.softmax(1)[:, :3] if case.softmax else logits_NK.sigmoid()
    for name in case.quality:
        scores_NK = scores_NK * outputs.flat_extra(name).double().sigmoid()[:, None]
    if case.head == "PAAHead":
        scores_NK = scores_NK.sqrt()
    counts = [2 * f.shape[2] * f.shape[3] * A for f, A in zip(feats, case.priors)]
    image_N = torch.cat([torch.arange(2).repeat_interleave(n // 2) for n in counts])
    for image, (height, width) in enumerate(SHAPES):
        mine = image_N == image
        edge = 1 if case.head == "FoveaHead" else 0  # it clips to the last pixel
        boxes_M4 = outputs.flat_boxes()[mine].double()
        if case.head not in ("YOLOXHead", "YOLOV3Head", "TOODHead"):  # these do not clip
            limits = torch.tensor([width - edge, height - edge] * 2).double()
            boxes_M4 = torch.minimum(boxes_M4.clamp(min=0), limits)
        seen_M = torch.zeros(len(boxes_M4), dtype=torch.bool)
        assert boxes_M4.std(dim=0).min() > 1
        for k in range(3):
            of_class = found[image].labels == k
            theirs = torch.cat(
                [found[image].bboxes[of_class], 100 * found[image].scores[of_class, None]], 1
            ).double()
            ours = torch.cat([boxes_M4, 100 * scores_NK[mine, k, None]], 1)
            distance = torch.cdist(theirs, ours, p=float("inf"))
            if len(theirs):
                assert distance.min(dim=1).values.max() < 1e-2
                seen_M |= distance.min(dim=0).values < 1e-2
        # Non-maximum suppression leaves out equal boxes even at a threshold of 1.
        assert seen_M.all() or (case.head == "PAAHead" and seen_M.float().mean() > 0.3)


@each_head
def test_autocast_does_not_round_what_the_head_gave(case: Case) -> None:
    model, feats = opinionated(case)
    head, adapter = model.bbox_head, adapter_for(model.bbox_head)

    def read() -> list[Tensor]:
        outputs = adapter.outputs(head, feats, copy.deepcopy(raw), EVERYTHING)  # YOLOv3's are changed
        return [*outputs.levels(), *adapter.boxes(head, outputs)]

    with torch.no_grad():
        raw = head(tuple(feats))
        expected = read()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = read()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@each_head
def test_student_in_training_and_teacher_in_eval_mean_the_same(case: Case) -> None:
    model, feats = opinionated(case)
    head = model.bbox_head
    with torch.no_grad():
        tested, of_test = ask(head, feats), head(tuple(feats))
        head.training = True  # of its layers alone, whose normalisation is another matter
        trained, of_training = ask(head, feats), head(tuple(feats))
    for a, b in zip(tested.levels(), trained.levels()):
        torch.testing.assert_close(a, b)
    same = len(of_test) == len(of_training) and all(
        torch.equal(a, b) for p, q in zip(of_test, of_training) for a, b in zip(p, q)
    )
    assert same != case.modes


@each_that_trains
def test_assigned_labels(case: Case) -> None:
    model = build(stock(case.config)).train()
    head, adapter = model.bbox_head, adapter_for(model.bbox_head)
    data = model.data_preprocessor(two_images(), True)
    with observe(head, labels=()) as seen, recorded(head, adapter.label_losses) as calls:
        model.loss(data["inputs"], data["data_samples"])
    outputs = adapter.outputs(head, seen.feats[0], seen.raw[0], EVERYTHING)
    assert outputs.cls_logits is not None
    flat_NK = outputs.flat_cls_logits()
    if not case.labels:
        with pytest.raises(UserError, match=r"foreground[\s\S]*region='all'"):
            adapter.assigned_labels(head, flat_NK, calls, outputs.cls_logits)
        return
    labels_N = adapter.assigned_labels(head, flat_NK, calls, outputs.cls_logits)
    assert labels_N.shape == flat_NK.shape[:1]
    if "image by image" in case.labels:
        with pytest.raises(UserError, match="in its own order|only the foreground"):
            adapter.assigned_labels(head, flat_NK, calls)

    # By our own count: every foreground prior is near the one object of its image, and has its class.
    start, foreground = 0, [0, 0]
    for feat, A, (stride, _) in zip(outputs.feats, case.priors, outputs.spec.strides):
        H, W = feat.shape[2:]
        labels_BHWA = labels_N[start : start + 2 * H * W * A].reshape(2, H, W, A)
        start += 2 * H * W * A
        for image, y, x, a in (labels_BHWA != 3).nonzero().tolist():
            assert labels_BHWA[image, y, x, a] == LABELS[image]
            x1, y1, x2, y2 = BOXES[image]
            assert x1 - 1.5 * stride <= x * stride <= x2 + 0.5 * stride
            assert y1 - 1.5 * stride <= y * stride <= y2 + 0.5 * stride
            foreground[image] += 1
    assert min(foreground) > 0
    assert sum(foreground) < len(labels_N) / 2


@each_head
@pytest.mark.parametrize("part", ["cls_logits", "bbox_pred"])
def test_a_teacher_without_the_layers_that_nobody_reads(case: Case, part: Any) -> None:
    model, feats = opinionated(case)
    head, adapter = copy.deepcopy(model.bbox_head), adapter_for(model.bbox_head)

    def read(raw: Any) -> list[Tensor]:
        return adapter.outputs(head, feats, raw, frozenset({part})).levels()[len(feats) :]

    left_out = skip_unread(head, feats, read)
    assert left_out or case.head.startswith(("YOLOV3", "TOOD", "RepPoints", "VFNet", "YOLOF"))
    with torch.no_grad():
        for a, b in zip(read(head(tuple(feats))), read(model.bbox_head(tuple(feats)))):
            assert torch.equal(a, b)


@each_head
def test_valid_priors(case: Case) -> None:
    model, feats = opinionated(case)
    head, adapter = model.bbox_head, adapter_for(model.bbox_head)
    with torch.no_grad():
        outputs = ask(head, feats)
    assert outputs.cls_logits is not None
    valid_N = adapter.valid_priors(head, outputs.cls_logits, SHAPES)
    expected = []
    for feat, A, (x, y) in zip(feats, case.priors, outputs.spec.strides):
        for height, width in SHAPES:
            rows = torch.arange(feat.shape[2])[:, None] * y < height
            columns = torch.arange(feat.shape[3])[None] * x < width
            expected.append((rows & columns)[..., None].expand(-1, -1, A).flatten())
    assert torch.equal(valid_N, torch.cat(expected))
    assert not valid_N.all()


@each_that_trains
def test_distillation_of_every_part(case: Case) -> None:
    """A student with such a head learns from a teacher with one, and all the gradients are finite."""

    @MODELS.register_module(name="EveryPartTestLoss", force=True)
    class EveryPartTestLoss(DistillLoss):
        needs = frozenset({"feats", "cls_logits", "bbox_pred", "boxes", "extra"})

        def forward(self, student: Any, teacher: Any, context: Any) -> Any:
            assert teacher.extra.keys() == student.extra.keys()
            parts = zip(student.levels(), teacher.levels(), strict=True)
            return self.loss_weight * sum((s - t).abs().clamp(max=100).mean() for s, t in parts)

    try:
        terms = {"every": {"type": "EveryPartTestLoss"}}
        model = build(distilled(stock(case.config), stock(case.config), None, distill=terms))
    finally:
        MODELS.module_dict.pop("EveryPartTestLoss")
    losses = losses_of(model, two_images())
    assert losses["loss_kd_every"] > 0
    losses["loss_kd_every"].backward()
    gradients = {name: p.grad for name, p in model.bbox_head.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    silent = {name for name, _ in model.bbox_head.named_parameters() if name not in gradients}
    assert silent == ({"center_prior.mean", "center_prior.sigma"} if "AutoAssign" in case.head else set())
    assert sum(gradient.abs().sum() for gradient in gradients.values()) > 0


def test_tood_tells_its_labels_with_both_of_its_losses() -> None:
    model = build(stock("tood/tood_r50_fpn_1x_coco.py")).train()
    head, adapter = model.bbox_head, adapter_for(model.bbox_head)
    data = model.data_preprocessor(two_images(), True)
    for epoch in (0, head.initial_epoch):
        MessageHub.get_current_instance().update_info("epoch", epoch)
        with observe(head, labels=()) as seen, recorded(head, adapter.label_losses) as calls:
            model.loss(data["inputs"], data["data_samples"])
        assert isinstance(calls[0][1], tuple) == (epoch > 0)
        outputs = adapter.outputs(head, seen.feats[0], seen.raw[0], EVERYTHING)
        labels_N = adapter.assigned_labels(head, outputs.flat_cls_logits(), calls)
        assert set(labels_N.tolist()) == {0, 2, 3}
