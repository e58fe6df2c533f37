from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.outputs import default_place
from mmkd.outputs.grid import _within, watch_cells
from mmkd.structures import DistillContext, RowOutputs

from ..conftest import build
from ..detectors.test_kd_detector import distilled
from .instances import OF_GRIDS, batch, losses_of, opinionated, tiny, twins, unsettle

CELLS = {"type": "DistillationLoss", "region": "all"}
GRIDS = [10, 9, 6, 4, 3]


def rows_of(model: Any, name: str, data: Any = None) -> tuple[RowOutputs, RowOutputs, DistillContext]:
    """What a loss is given in one step."""
    seen = []
    handle = model.distill[name].register_forward_pre_hook(lambda _, args: seen.append(args))
    losses_of(model, data)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("family", OF_GRIDS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path, family: str) -> None:
    model = twins(tiny(family), tmp_path, cls=CELLS, assigned={"type": "DistillationLoss"})
    found = losses_of(model)
    assert abs(found["loss_kd_cls"]) < 1e-6
    assert abs(found["loss_kd_assigned"]) < 1e-6
    unsettle(model)
    moved = losses_of(model)
    assert moved["loss_kd_cls"] > 1e-4
    assert moved["loss_kd_assigned"] > 1e-4
    moved["loss_kd_cls"].backward()
    for part in (model.backbone, model.neck, model.mask_head.conv_cls):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())


def test_rows_are_the_cells_of_each_level_with_the_heads_own_labels(tmp_path: Path) -> None:
    model = twins(tiny("SOLO"), tmp_path, cls=CELLS, level={**CELLS, "place": "grid.3"})
    assert default_place(model) == "grid"
    given = []
    handle = model.mask_head.loss_cls.register_forward_pre_hook(lambda _, args: given.append(args))
    own, taught, context = rows_of(model, "cls")
    logits_NK, labels_N = given[0]
    assert torch.equal(own.cls_logits_NK, logits_NK)
    assert torch.equal(context.labels_N, labels_N)
    assert (labels_N < 3).any()
    assert len(labels_N) == 2 * sum(grid**2 for grid in GRIDS)
    start = 2 * sum(grid**2 for grid in GRIDS[:3])
    level, of_level, labelled = rows_of(model, "level")
    handle.remove()
    assert torch.equal(level.cls_logits_NK, own.cls_logits_NK[start : start + 2 * 16])
    assert torch.equal(of_level.cls_logits_NK, taught.cls_logits_NK[start : start + 2 * 16])
    assert torch.equal(labelled.labels_N, labels_N[start : start + 2 * 16])
    assert level.image_N.tolist() == [0] * 16 + [1] * 16


def test_a_teacher_gives_logits_and_not_the_maxima_that_it_tests_with(tmp_path: Path) -> None:
    model = twins(tiny("SOLO"), tmp_path, cls=CELLS)
    _, taught, _ = rows_of(model, "cls")
    with torch.no_grad():
        pixels = model.data_preprocessor(batch(), True)["inputs"]
        _, tested = model.teacher.model.mask_head(model.teacher.model.extract_feat(pixels))
    tested_NK = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, 3) for level in tested])
    kept_NK = tested_NK > 0
    assert 0 < kept_NK.float().mean() < 1
    torch.testing.assert_close(taught.cls_logits_NK.sigmoid()[kept_NK], tested_NK[kept_NK])


def test_cells_in_the_padding() -> None:
    class Sample:
        img_shape, pad_shape, batch_input_shape = (30, 64), (32, 64), (64, 128)

    class Whole:
        img_shape = pad_shape = batch_input_shape = (64, 128)

    like = torch.zeros(1)
    on_image_N = _within([4, 2], [Sample(), Whole()], "img_shape", like)
    assert on_image_N[:16].reshape(4, 4).tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2
    assert on_image_N[16:32].all()
    assert on_image_N[32:36].tolist() == [True, False, False, False]
    assert torch.equal(_within([4, 2], [Sample(), Whole()], "pad_shape", like), on_image_N)


def test_images_of_different_sizes(tmp_path: Path) -> None:
    model = twins(tiny("SOLOv2"), tmp_path, cls={**CELLS, "valid": "pad"})
    own, _, context = rows_of(model, "cls", batch(128, one_size=False))
    assert context.valid_N[own.image_N == 0].all()
    assert 0 < context.valid_N[own.image_N == 1].float().mean() < 0.6


def test_classes_are_found_by_name(tmp_path: Path) -> None:
    teacher = tiny("SOLO", classes=5)
    checkpoint = opinionated(tmp_path / "t.pth", teacher, dataset_meta={"classes": ("a", "b", "c", "d", "e")})
    cfg = distilled(tiny("SOLO"), checkpoint, distill={"cls": CELLS})
    cfg.teacher.update(config={"model": teacher}, precision="fp32")
    model = build(cfg).train()
    model.check_class_names({"classes": ("d", "a", "c")})
    _, taught, _ = rows_of(model, "cls")
    with torch.no_grad(), watch_cells(model.teacher.model.mask_head) as every:
        pixels = model.data_preprocessor(batch(), True)["inputs"]
        model.teacher.model.mask_head(model.teacher.model.extract_feat(pixels))
    torch.testing.assert_close(taught.cls_logits_NK, every.logits(range(5))[:, [3, 0, 2]])


def test_what_is_refused(tmp_path: Path) -> None:
    cfg = distilled(tiny("SOLO"), None, distill={"cls": CELLS})
    cfg.teacher.config.model = tiny("SOLOv2")
    build(cfg)
    cfg.teacher.config.model.mask_head.num_grids = [12, 9, 6, 4, 3]
    with pytest.raises(UserError, match=r"have different grids(.|\n)*\[10, 9, 6, 4, 3\](.|\n)*\[12, 9"):
        build(cfg)
    cfg.teacher.config.model = tiny("SOLO", classes=4)
    with pytest.raises(UserError, match="different classes"):
        build(cfg)
    cfg.teacher.config.model = tiny("CondInst")
    with pytest.raises(UserError, match="it has no grid of cells like SOLO"):
        build(cfg)
    box = distilled(tiny("SOLO"), None, distill={"box": {"type": "BoxIoULoss"}})
    with pytest.raises(UserError, match=r"place='grid' of the student(.|\n)*needs boxes"):
        build(box)
    model = twins(tiny("SOLO"), tmp_path, cls=CELLS)
    model.mask_head.loss_cls.register_forward_pre_hook(
        lambda _, args: (args[0].flip(0), *args[1:]), prepend=True
    )
    with pytest.raises(UserError, match=r"class that SOLOHead assigned(.|\n)*484 cells"):
        losses_of(model)
