"""With the options of docs/parity.md our losses have the numbers of the published code."""

from __future__ import annotations

import ast
import math
import re

import pytest

from mmkd.compat import load_config
from mmkd.losses import registered_losses
from mmkd.losses.row_base import RowLoss
from mmkd.registry import MODELS

from ..conftest import ROOT
from .parity import ROWS, Row, compare, table


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.loss)
def test_value_and_gradient(row: Row) -> None:
    value, gradient = compare(row)
    assert math.isnan(value) == row.offset
    assert row.offset or value < 1e-6
    assert gradient < 1e-6


@pytest.mark.parametrize("row", [row for row in ROWS if len(row.config) > 1], ids=lambda row: row.loss)
def test_the_formula_tells_the_options_apart(row: Row) -> None:
    """Without them the number is another one."""
    plain = Row(row.loss, row.reference, {"type": row.config["type"]}, row.formula, row.part, row.offset)
    value, gradient = compare(plain)
    assert gradient > 1e-3 or value > 1e-3


def test_the_page_has_the_table_that_its_command_makes() -> None:
    page = (ROOT / "docs/parity.md").read_text(encoding="utf-8")
    assert f"\n{table()}\n" in page, "paste what `python -m tests.losses.parity` prints"


def test_the_options_that_the_page_explains() -> None:
    text = (ROOT / "docs/parity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+=\S+)` \| (.+?) \|", text.partition("## What the options")[2], re.MULTILINE)
    assert len(rows) > 10
    on_priors = [name for name in registered_losses() if issubclass(MODELS.get(name), RowLoss)]
    for option, of in rows:
        name, _, value = option.partition("=")
        for loss in on_priors if of == "every loss on priors" else re.findall(r"`(\w+)`", of):
            given = ast.literal_eval(value)
            assert getattr(MODELS.build({"type": loss, name: given}), name) == given


@pytest.mark.parametrize(
    ("recipe", "rows"),
    [
        ("atss/bckd_atss_r50_r101_1x_coco.py", ["BCKD, class logits", "BCKD, boxes"]),
        (
            "atss/crosskd_atss_r50_r101_1x_coco.py",
            [
                "CrossKD, class logits (ATSS, GFL, RetinaNet)",
                "CrossKD, boxes (ATSS, RetinaNet)",
                "CrossKD, centerness (ATSS)",
            ],
        ),
        (
            "gfl/crosskd_gfl_r50_r101_1x_coco.py",
            ["CrossKD, class logits (ATSS, GFL, RetinaNet)", "CrossKD, box distributions (GFL)"],
        ),
        ("atss/pkd_atss_r50_r101_1x_coco.py", ["PKD"]),
        ("atss/mgd_atss_r50_r101_1x_coco.py", ["MGD"]),
    ],
)
def test_recipes_have_the_options_of_the_reference(recipe: str, rows: list[str]) -> None:
    losses = load_config(f"mmkd::{recipe}").model.distill.to_dict()
    if "cross" in losses:
        losses = losses["cross"]["losses"]
    options = {row.loss: dict(row.config) for row in ROWS}
    # As published, which a config without a weight is not.
    weight = {"loss_weight": 2e-5} if rows == ["MGD"] else {}
    assert list(losses.values()) == [{**options[row], **weight} for row in rows]


def test_the_recipe_of_kd_detr_has_the_options_of_its_reference() -> None:
    """Its box losses times the layers of the decoder, which the reference adds."""
    cfg = load_config("mmkd::dab_detr/kd-detr_dab-detr_r18_r50_50e_coco.py").model
    layers = cfg.decoder.num_layers
    rows = [dict(row.config) for row in ROWS if row.loss.startswith("KD-DETR")]
    for row in rows[1:]:
        row["loss_weight"] = layers * MODELS.build(dict(row)).loss_weight
    shared = [{**row, "place": "shared_queries"} for row in rows]
    assert list(cfg.distill.to_dict().values()) == shared
