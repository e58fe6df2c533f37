from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper

from mmkd.compat import load_config
from mmkd.errors import UserError
from mmkd.losses import DistillationLoss, DistillLoss, kl_divergence
from mmkd.registry import MODELS

from ..conftest import batch, build, distilled, losses_of, save_teacher, tiny_atss, tiny_teacher
from ..heads.test_adapter import stock


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return save_teacher(tmp_path / "teacher.pth", tiny_teacher())


def train(model: Any, data: dict[str, Any], steps: int = 3) -> list[dict[str, Any]]:
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
    model.train()
    return [model.train_step(copy.deepcopy(data), optimizer) for _ in range(steps)]


def gradients(model: Any, data: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    model.zero_grad()
    model.parse_losses(losses_of(model, data))[0].backward()
    return [(name, p.grad) for name, p in model.named_parameters()]


def build_distilled(checkpoint: str | None, **options: Any) -> Any:
    return build(distilled(tiny_atss(), tiny_teacher(), checkpoint, **options))


@pytest.mark.parametrize("region", ["all", "foreground", "teacher"])
def test_weight_zero_is_the_stock_student_bit_for_bit(checkpoint: str, region: str) -> None:
    loss = {"type": "DistillationLoss", "loss_weight": 0, "region": region}
    ours = build_distilled(checkpoint, distill={"cls": loss})
    stock_student = build(tiny_atss())
    data = batch((96, 128), (80, 100))
    for a, b in zip(train(ours, data), train(stock_student, data)):
        assert a.pop("loss_kd_cls") == 0
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in b)
    assert ours.state_dict().keys() == stock_student.state_dict().keys()
    for key, value in stock_student.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    for (name, a), (_, b) in zip(gradients(ours, data), gradients(stock_student, data)):
        assert torch.equal(a, b), name


def test_distillation_changes_gradients_but_not_task_losses(checkpoint: str) -> None:
    ours, alone = build_distilled(checkpoint), build(tiny_atss())
    a, b = train(ours, batch(), 1)[0], train(alone, batch(), 1)[0]
    assert a["loss_kd_cls"] > 0
    for key in ("loss_cls", "loss_bbox", "loss_centerness"):
        assert torch.equal(a[key], b[key])
    torch.testing.assert_close(a["loss"], b["loss"] + a["loss_kd_cls"])
    first, second = dict(gradients(ours, batch())), dict(gradients(alone, batch()))
    assert not torch.equal(first["backbone.conv1.weight"], second["backbone.conv1.weight"])


def test_loss_is_the_function_of_both_heads_logits(checkpoint: str) -> None:
    model = build_distilled(checkpoint, distill={"cls": {"type": "DistillationLoss", "region": "all"}})
    data = model.data_preprocessor(batch((96, 128), (64, 100)), True)
    losses = model.loss(data["inputs"], data["data_samples"])
    teacher = model.teacher.ask(data["inputs"], data["data_samples"])()
    student = model._forward(data["inputs"])[0]
    keep, rows_s, rows_t = [], [], []
    for stride, s, t in zip((8, 16, 32, 64, 128), student, teacher.cls_logits):
        for image, (height, width) in enumerate([(96, 128), (64, 100)]):
            y, x = torch.meshgrid(*(torch.arange(n) * stride for n in s.shape[2:]), indexing="ij")
            keep.append(((y < height) & (x < width)).flatten())
            rows_s.append(s[image].flatten(1).T)
            rows_t.append(t[image].flatten(1).T)
    inside = torch.cat(keep)
    expected = kl_divergence(torch.cat(rows_s)[inside], torch.cat(rows_t)[inside], activation="sigmoid")
    torch.testing.assert_close(losses["loss_kd_cls"], model.terms["cls"].loss_weight * expected)


def test_padding_does_not_count(checkpoint: str) -> None:
    """An image has as many priors that count beside a larger one as alone."""
    loss = {"type": "DistillationLoss", "region": "all", "normalizer": "batch"}
    model = build_distilled(checkpoint, distill={"cls": loss}).eval()
    small, large = (64, 96), (128, 160)
    seen = []
    real = DistillationLoss.forward

    def spy(self: Any, student: Any, teacher: Any, context: Any) -> Any:
        seen.append(int(context.valid_N.sum()))
        return real(self, student, teacher, context)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationLoss, "forward", spy)
        for shapes in ([small], [large], [small, large]):
            losses_of(model, batch(*shapes))
    assert seen[2] == seen[0] + seen[1]


def test_state_parameters_and_modules_hold_no_teacher(checkpoint: str) -> None:
    model = build_distilled(checkpoint)
    alone = build(tiny_atss())
    assert model.state_dict().keys() == alone.state_dict().keys()
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in alone.named_parameters()]
    assert not any(m is model.teacher.model for m in model.modules())
    alone.load_state_dict(model.state_dict())


def test_deepcopy_shares_the_teacher_and_moves_follow(checkpoint: str) -> None:
    model = build_distilled(checkpoint)
    assert copy.deepcopy(model).teacher is model.teacher
    model.double()
    assert all(p.dtype == torch.float32 for p in model.teacher.model.parameters()), "its dtype is its own"
    model.float().to("meta")
    assert all(p.device.type == "meta" for p in model.teacher.model.parameters())


def test_train_mode_does_not_reach_the_teacher(checkpoint: str) -> None:
    model = build_distilled(checkpoint).train()
    assert not model.teacher.model.training


def test_predict_never_touches_the_teacher(checkpoint: str) -> None:
    model = build_distilled(checkpoint).eval()
    alone = build(tiny_atss()).eval()
    model.teacher = None
    with torch.no_grad():
        ours, theirs = model.test_step(batch()), alone.test_step(batch())
    for a, b in zip(ours, theirs):
        assert torch.equal(a.pred_instances.bboxes, b.pred_instances.bboxes)
        assert torch.equal(a.pred_instances.scores, b.pred_instances.scores)


def test_task_loss_weight_gives_hintons_form(checkpoint: str) -> None:
    def losses(**options: Any) -> dict[str, Any]:
        return train(build_distilled(checkpoint, **options), batch(), 1)[0]

    full = losses(distill={"cls": {"type": "DistillationLoss", "loss_weight": 1}})
    hinton = losses(distill={"cls": {"type": "DistillationLoss", "loss_weight": 0.3}}, task_loss_weight=0.7)
    for key, value in full.items():
        if key.startswith("loss_kd"):
            torch.testing.assert_close(hinton[key], 0.3 * value)
        elif key != "loss":
            torch.testing.assert_close(hinton[key], 0.7 * value)
    torch.testing.assert_close(hinton["loss"], sum(v for k, v in hinton.items() if k != "loss"))


def test_what_is_only_reported_is_not_weighed(checkpoint: str) -> None:
    model = build_distilled(checkpoint, task_loss_weight=0.5)
    assert model._weigh("acc", torch.tensor(2.0)) == 2
    assert model._weigh("loss_cls", [torch.tensor(2.0), torch.tensor(4.0)]) == [1, 2]


def test_bfloat16_autocast(checkpoint: str) -> None:
    terms = {r: {"type": "DistillationLoss", "region": r} for r in ("all", "foreground", "teacher")}
    model = build_distilled(checkpoint, distill=terms)
    exact = losses_of(model, batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = losses_of(model, batch())
    for region in terms:
        value = mixed[f"loss_kd_{region}"]
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[f"loss_kd_{region}"], rtol=0.05, atol=0)


def test_many_terms(checkpoint: str) -> None:
    terms = {
        "cls": {"type": "DistillationLoss", "region": "all"},
        "fg": {"type": "DistillationLoss", "region": "foreground", "activation": "softmax"},
        "off": {"type": "DistillationLoss", "loss_weight": 0},
    }
    model = build_distilled(checkpoint, distill=terms)
    losses = losses_of(model, batch())
    assert [key for key in losses if "kd" in key] == ["loss_kd_cls", "loss_kd_fg", "loss_kd_off"]
    assert losses["loss_kd_off"] == 0


def test_images_without_objects(checkpoint: str) -> None:
    terms = {r: {"type": "DistillationLoss", "region": r} for r in ("all", "foreground", "teacher")}
    model = build_distilled(checkpoint, distill=terms)
    losses = train(model, batch((64, 64), boxes=0), 1)[0]
    assert all(torch.isfinite(value) for value in losses.values())
    assert losses["loss_kd_foreground"] == 0


@pytest.mark.parametrize(
    "name",
    [
        "retinanet/retinanet_r18_fpn_1x_coco.py",
        "gfl/gfl_r50_fpn_1x_coco.py",
        "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    ],
)
def test_other_heads(name: str) -> None:
    terms = {r: {"type": "DistillationLoss", "region": r} for r in ("all", "foreground", "teacher")}
    model = build(distilled(stock(name), stock(name), None, distill=terms))
    losses = train(model, batch(), 1)[0]
    assert all(losses[f"loss_kd_{r}"] > 0 for r in terms)


def test_a_real_resnet101_atss_teacher(tmp_path: Path) -> None:
    teacher = "mmdet::atss/atss_r101_fpn_1x_coco.py"
    from mmkd.compat import load_config

    cfg = load_config(teacher).model
    cfg.backbone.init_cfg = None
    path = save_teacher(tmp_path / "r101.pth", cfg, dataset_meta={"classes": ("a",) * 80})
    student = load_config("configs/atss/kd_atss_r18_r101_1x_coco.py").model
    student.backbone.init_cfg = None
    student.teacher = ConfigDict(config=teacher, checkpoint=path)
    model = build(student)
    assert model.teacher.model.backbone.depth == 101
    losses = train(model, batch((64, 64), num_classes=80), 1)[0]
    assert torch.isfinite(losses["loss"])
    assert losses["loss_kd_cls"] > 0
    assert not any("teacher" in key for key in model.state_dict())


def test_nan_stops_before_the_weights_change(checkpoint: str) -> None:
    model = build_distilled(checkpoint)
    train(model, batch(), 1)  # on the first image a teacher that is made cheaper shows that it says the same
    MessageHub.get_current_instance().update_info("iter", 6)
    model.teacher.model.bbox_head.atss_cls.bias.data[0] = float("nan")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"loss_kd_cls is not finite at iteration 7[\s\S]*loss_cls 1"):
        train(model, batch(), 1)
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key])


NAMES = ("cat", "dog", "cow", "hen", "pig")


def named_teacher(folder: Path, names: tuple[str, ...] = NAMES) -> tuple[Any, str]:
    cfg = tiny_teacher(bbox_head__num_classes=len(names))
    return cfg, save_teacher(folder / "named.pth", cfg, dataset_meta={"classes": names})


def see(*names: str) -> None:
    MessageHub.get_current_instance().update_info("dataset_meta", {"classes": names})


@pytest.mark.parametrize("own", [("pig", "cat", "cow"), ("cow", "dog", "cat")])
@pytest.mark.parametrize("of_all", [NAMES, NAMES[:3]])
def test_classes_are_found_by_name(tmp_path: Path, own: tuple[str, ...], of_all: tuple[str, ...]) -> None:
    cfg, path = named_teacher(tmp_path, of_all)
    model = build(distilled(tiny_atss(), cfg, path))
    see(*own)
    if not set(own) <= set(of_all):
        with pytest.raises(UserError, match=r"lacks some(.|\n)*missing 1: pig(.|\n)*class_map"):
            losses_of(model, batch())
        return
    losses_of(model, batch())
    asked = torch.randn(1, 3, 64, 64), batch((64, 64))["data_samples"]
    taught = model.teacher.ask(*asked)()
    assert taught.spec.num_classes == 3
    model.teacher.class_index = None
    everything = model.teacher.ask(*asked)().flat_cls_logits()
    assert torch.equal(taught.flat_cls_logits(), everything[:, [of_all.index(name) for name in own]])


@pytest.mark.parametrize("loss", [{"type": "PKDLoss"}, {"type": "BoxIoULoss", "region": "foreground"}])
def test_classes_that_no_loss_reads_may_be_any(tmp_path: Path, loss: dict[str, Any]) -> None:
    cfg, path = named_teacher(tmp_path)
    model = build(distilled(tiny_atss(), cfg, path, distill={"x": loss}))
    see("cell", "nucleus", "debris")
    losses_of(model, batch())["loss_kd_x"].backward()


def test_class_map_renames(tmp_path: Path) -> None:
    cfg, path = named_teacher(tmp_path)
    model_cfg = distilled(tiny_atss(), cfg, path)
    model_cfg.teacher.class_map = {"kitty": "cat", "piglet": "pig"}
    model = build(model_cfg)
    see("kitty", "dog", "piglet")
    losses_of(model, batch())
    assert model.teacher.class_index == [0, 1, 4]
    model_cfg.teacher.class_map = ["cat"]
    with pytest.raises(UserError, match="class_map must be a dict"):
        build(model_cfg)


def test_equal_names_need_no_mapping_and_unknown_ones_an_equal_number(tmp_path: Path) -> None:
    cfg, path = named_teacher(tmp_path, NAMES[:3])
    model = build(distilled(tiny_atss(), cfg, path))
    losses_of(model, batch())  # without any names
    see(*NAMES[:3])
    model.check_class_names({"classes": NAMES[:3]})
    assert model.teacher.class_index is None

    cfg, path = named_teacher(tmp_path)
    model = build(distilled(tiny_atss(), cfg, path))
    with pytest.raises(UserError, match=r"the data set has no class names(.|\n)*metainfo"):
        model.check_class_names({})
    with pytest.raises(UserError, match=r"number of classes differs(.|\n)*num_classes=2"):
        model.check_class_names({"classes": NAMES[:2]})


def test_a_two_stage_teacher_by_its_neck() -> None:
    cfg = load_config("mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py").model
    cfg.backbone.update(depth=18, base_channels=8, frozen_stages=-1, norm_eval=False, init_cfg=None)
    cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=64)
    cfg.rpn_head.update(in_channels=64, feat_channels=64)
    cfg.roi_head.bbox_roi_extractor.out_channels = 64
    cfg.roi_head.bbox_head.update(in_channels=64, fc_out_channels=64)
    terms = {"neck": {"type": "PKDLoss"}}
    model_cfg = distilled(tiny_atss(), cfg, None, distill=terms)
    with pytest.raises(UserError, match="differ in strides"):
        build(model_cfg)
    student = tiny_atss(
        neck__start_level=0,
        bbox_head__anchor_generator__strides=[4, 8, 16, 32, 64],
        neck__add_extra_convs=False,
    )
    model = build(distilled(student, cfg, None, distill=terms))
    assert model.teacher.facts["left_out"] == ["rpn_head", "roi_head"]
    losses_of(model, batch((128, 128)))["loss_kd_neck"].backward()
    assert model.neck.fpn_convs[0].conv.weight.grad.abs().sum() > 0


def test_levels_are_mapped_or_refused() -> None:
    six = tiny_teacher(
        neck__start_level=0, neck__num_outs=6, bbox_head__anchor_generator__strides=[4, 8, 16, 32, 64, 128]
    )
    with pytest.raises(UserError, match="differ in levels"):
        build(distilled(tiny_atss(), six, None))
    cfg = distilled(tiny_atss(), six, None)
    cfg.teacher.levels = [1, 2, 3, 4, 5]
    losses_of(build(cfg), batch())["loss_kd_cls"].backward()
    for levels, message in (
        ([1, 2, 3, 4, 9], "from 0 to 5"),
        ("all", "must give the teacher level"),
    ):
        cfg.teacher.levels = levels
        with pytest.raises(UserError, match=message):
            build(cfg)


def test_layers_of_losses_train_and_stay_out_of_the_students_state(checkpoint: str) -> None:
    wide = tiny_teacher(neck__out_channels=96, bbox_head__in_channels=96, bbox_head__feat_channels=96)
    terms = {"neck": {"type": "FitNetsLoss"}, "cls": {"type": "DistillationLoss"}}
    model, stock_student = build(distilled(tiny_atss(), wide, None, distill=terms)), build(tiny_atss())
    own = dict(model.distill.named_parameters())
    assert own
    assert set(model.state_dict()) == set(stock_student.state_dict())
    for key, value in stock_student.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), "they draw no random numbers of the student's"
    before = {name: parameter.clone() for name, parameter in own.items()}
    train(model, batch(), steps=1)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in own.items())

    after = {name: parameter.clone() for name, parameter in own.items()}
    model.load_state_dict(stock_student.state_dict(), strict=True)
    assert all(torch.equal(parameter, after[name]) for name, parameter in own.items())
    twin = copy.deepcopy(model)
    assert set(twin.state_dict()) == set(stock_student.state_dict())
    twin.load_state_dict(stock_student.state_dict(), strict=True)

    model.terms["neck"].loss_weight = 0  # as a schedule may do: still part of the backward pass
    losses = losses_of(model, batch())
    assert losses["loss_kd_neck"] == 0
    model.parse_losses(losses)[0].backward()
    assert all(parameter.grad is not None for parameter in own.values())


def test_inherits_the_teachers_weights(checkpoint: str) -> None:
    saved = torch.load(checkpoint)["state_dict"]
    cfg = distilled(tiny_atss(bbox_head__stacked_convs=2), tiny_teacher(), checkpoint)
    model = build({**cfg, "inherit": ["neck", "bbox_head"]})
    state = model.state_dict()
    for key, value in state.items():
        if key.startswith(("neck.fpn_convs", "bbox_head")):
            assert torch.equal(value, saved[key]), key
        elif key.startswith("neck.lateral_convs") and key.endswith("weight"):
            assert value.shape != saved[key].shape
    alone = build(tiny_atss(bbox_head__stacked_convs=2)).state_dict()
    assert all(torch.equal(state[key], alone[key]) for key in state if key.startswith("backbone"))
    for options, message in (
        ({"inherit": ["nek"]}, r"unknown student modules: nek(.|\n)*neck"),
        ({"inherit": "neck"}, "list of names"),
        ({"inherit": None}, "list of names"),
        ({"inherit": 7}, "list of names"),
    ):
        with pytest.raises(UserError, match=message):
            build({**cfg, **options})
    with pytest.raises(UserError, match="checkpoint=None"):
        build({**distilled(tiny_atss(), tiny_teacher(), None), "inherit": ["neck"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill": {}}, "has no losses"),
        ({"distill": None}, "has no losses"),
        ({"distill": {"a.b": {"type": "DistillationLoss"}}}, "Invalid loss name"),
        ({"distill": {"keys": {"type": "DistillationLoss"}}}, "Invalid loss name"),
        ({"distill": {"x": {"type": "CrossKDLoss"}}}, r"distill\.x lacks losses"),
        ({"distil": {}}, r"KDSingleStageDetector has no option distil\.\n.*distill.*teacher"),
        (
            {"distill": {"cls": {"type": "KLLoss"}}},
            r"distill\.cls is not.*\n.*one of: .*DistillationLoss.*\n.*'KLLoss'",
        ),
        ({"distill": {"cls": {"type": "FocalLoss"}}}, r"distill\.cls is not a distillation loss"),
        ({"distill": {"cls": {"loss_weight": 1}}}, r"distill\.cls is not a distillation loss[\s\S]*None"),
        ({"distill": {"cls": "DistillationLoss"}}, r"DistillationLoss"),
        (
            {"distill": {"cls": {"type": "DistillationLoss", "T": 4}}},
            r"distill\.cls has no option T.*\n.*temperature",
        ),
        (
            {"roi_head": {}, "rpn_head": {}},
            r"does not support this student[\s\S]*roi_head, rpn_head, as in ",
        ),
        ({"mask_head": {}}, r"does not support this student[\s\S]*mask_head, as in SingleStageInst"),
        ({"use_syncbn": True}, r"no option use_syncbn.*\n.*bbox_head"),
        ({"task_loss_weight": -1}, "task_loss_weight must be a number ≥ 0, found -1"),
    ],
)
def test_mistakes_in_the_config(options: dict[str, Any], message: str) -> None:
    cfg = distilled(tiny_atss(), tiny_teacher(), None, **options)
    with pytest.raises(UserError, match=message):
        MODELS.build(cfg)


@pytest.mark.parametrize(("part", "message"), [("distill", "has no losses"), ("teacher", "has no config")])
def test_teacher_and_losses_are_needed(part: str, message: str) -> None:
    cfg = distilled(tiny_atss(), tiny_teacher(), None)
    del cfg[part]
    with pytest.raises(UserError, match=message):
        MODELS.build(cfg)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_unknown_head_lists_the_valid_ones(whose: str) -> None:
    cfg = distilled(tiny_atss(), tiny_teacher(), None)
    (cfg if whose == "student" else cfg.teacher.config).bbox_head.type = "ATSHead"
    with pytest.raises(
        UserError, match=rf"{whose}'s head is not.*\n.*ATSSHead.*GFLHead.*\n.*ATSHead"
    ) as error:
        MODELS.build(cfg)
    assert "CornerHead" not in str(error.value)


def test_softmax_of_one_class_is_refused_at_build_time() -> None:
    one = {"bbox_head__num_classes": 1}
    loss = {"cls": {"type": "DistillationLoss", "activation": "softmax"}}
    with pytest.raises(UserError, match="activation='sigmoid'"):
        MODELS.build(distilled(tiny_atss(**one), tiny_teacher(**one), None, distill=loss))


def test_maps_of_different_sizes(checkpoint: str) -> None:
    teacher = tiny_teacher()
    model = build(distilled(tiny_atss(), teacher, checkpoint))
    model.teacher.inner.pixels = lambda inputs, shapes: inputs[..., ::2, ::2]
    with pytest.raises(UserError, match="feature maps differ in size"):
        losses_of(model, batch())


def test_a_loss_of_ones_own(checkpoint: str) -> None:
    @MODELS.register_module(name="OwnTestLoss", force=True)
    class OwnTestLoss(DistillLoss):
        needs = frozenset({"feats"})

        def forward(self, student: Any, teacher: Any, context: Any) -> Any:
            return self.loss_weight * (student.feats[0].mean() - teacher.feats[0].mean()) ** 2

    try:
        model = build_distilled(checkpoint, distill={"own": {"type": "OwnTestLoss"}})
        assert losses_of(model, batch())["loss_kd_own"] > 0
    finally:
        MODELS.module_dict.pop("OwnTestLoss")


def test_a_loss_through_the_teachers_layers(checkpoint: str) -> None:
    """The student's features reach the teacher's head, and its gradient comes back to the neck."""

    @MODELS.register_module(name="CrossedTestLoss", force=True)
    class CrossedTestLoss(DistillLoss):
        needs = frozenset({"cls_logits", "layers"})

        def forward(self, student: Any, teacher: Any, context: Any) -> Any:
            crossed = context.through(lambda model, x: model.bbox_head((x,))[0][0], student.feats[0])
            return self.loss_weight * (crossed - teacher.cls_logits[0]).square().mean()

    try:
        model = build_distilled(checkpoint, distill={"own": {"type": "CrossedTestLoss"}})
        losses_of(model, batch())["loss_kd_own"].backward()
    finally:
        MODELS.module_dict.pop("CrossedTestLoss")
    assert model.neck.fpn_convs[0].conv.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.bbox_head.parameters())
    assert all(parameter.grad is None for parameter in model.teacher.model.parameters())


def cached(checkpoint: str, folder: Path, data: dict[str, Any], **cache: Any) -> Any:
    """A distilled model with a cached teacher, and files for the batch's images."""
    cfg = distilled(tiny_atss(), tiny_teacher(), checkpoint, distill={"cls": ALL})
    cfg.teacher.cache = {"dir": str(folder / "cache"), "dtype": "fp32", **cache}
    model = build(cfg)
    model.teacher.for_pipeline("LoadImageFromFile()")
    for index, sample in enumerate(data["data_samples"]):
        (folder / f"{index}.jpg").touch()
        sample.set_metainfo({"img_path": str(folder / f"{index}.jpg"), "flip": False})
    return model


ALL = {"type": "DistillationLoss", "region": "all", "normalizer": "batch"}


def test_a_cached_teacher_gives_the_same_losses(checkpoint: str, tmp_path: Path) -> None:
    data = batch()
    live = losses_of(build_distilled(checkpoint, distill={"cls": ALL}), data)
    model = cached(checkpoint, tmp_path, data)
    for turn in range(2):
        losses = losses_of(model, data)
        torch.testing.assert_close(losses["loss_kd_cls"], live["loss_kd_cls"])
        assert model.teacher.computed == 2
        assert model.teacher.read == 2 * turn
    assert not any("teacher" in key for key in model.state_dict())


def test_priors_that_were_not_stored_do_not_count(checkpoint: str, tmp_path: Path) -> None:
    data = batch()
    plain = build_distilled(checkpoint, distill={"cls": ALL})
    all_logits = losses_of(plain, data)["loss_kd_cls"]
    few = losses_of(cached(checkpoint, tmp_path, data, top=10), data)["loss_kd_cls"]
    assert 0 < few < all_logits
    every = losses_of(cached(checkpoint, tmp_path, data, top=10_000), data)["loss_kd_cls"]
    torch.testing.assert_close(every, all_logits)


def swin_teacher() -> ConfigDict:
    """The same neck and head on another kind of backbone."""
    cfg = tiny_teacher(neck__in_channels=[16, 32, 64, 128])
    cfg.backbone = ConfigDict(
        type="SwinTransformer",
        embed_dims=16,
        depths=[2, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_indices=(0, 1, 2, 3),
    )
    return cfg


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_teacher_with_another_kind_of_backbone(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the processor would have bfloat16, which shifted windows do not."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    terms = {"cls": ALL, "neck": {"type": "PKDLoss"}, "box": {"type": "BoxIoULoss"}}
    cfg = distilled(tiny_atss(), swin_teacher(), None, distill=terms)
    cfg.teacher.precision = precision
    model = build(cfg)
    losses = losses_of(model, batch())
    model.parse_losses(losses)[0].backward()
    assert all(torch.isfinite(losses[f"loss_kd_{name}"]) for name in terms)
    assert losses["loss_kd_neck"] > 0


def test_shifted_windows_have_no_half_precision() -> None:
    cfg = distilled(tiny_atss(), swin_teacher(), None)
    cfg.teacher.precision = "bf16"
    with pytest.raises(UserError, match="shifted windows"):
        losses_of(build(cfg), batch())


def test_a_teacher_with_another_head(checkpoint: str) -> None:
    """Class logits and decoded boxes where the priors are the same; features where they are not."""
    gfl = tiny_atss()
    gfl.bbox_head.update(type="GFLHead", loss_dfl={"type": "DistributionFocalLoss"}, reg_max=8)
    gfl.bbox_head.loss_cls = ConfigDict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0)
    for key in ("loss_centerness", "bbox_coder"):
        gfl.bbox_head.pop(key)
    terms = {"cls": ALL, "box": {"type": "BoxIoULoss"}, "neck": {"type": "CWDLoss"}}
    losses = losses_of(build(distilled(gfl, tiny_teacher(), checkpoint, distill=terms)), batch())
    assert losses["loss_kd_cls"] > 0
    assert 0 < losses["loss_kd_box"] < 4
    sum(losses[f"loss_kd_{name}"] for name in terms).backward()

    dense = tiny_teacher(bbox_head__anchor_generator__ratios=[0.5, 1.0, 2.0])
    with pytest.raises(UserError, match=r"base priors per level(.|\n)*remedy(.|\n)*feature losses"):
        build(distilled(tiny_atss(), dense, None))
    features = {"neck": {"type": "CWDLoss"}}
    losses_of(build(distilled(tiny_atss(), dense, None, distill=features)), batch())[
        "loss_kd_neck"
    ].backward()
