"""With the options of docs/parity.md our losses have the numbers of the published code."""

from __future__ import annotations

import math

import pytest

from mmkd.compat import load_config
from mmkd.registry import MODELS

from .parity import ROWS, Row, compare


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


def test_the_recipe_of_kd_detr_has_the_options_of_its_reference() -> None:
    """Its box losses times the layers of the decoder, which the reference adds."""
    cfg = load_config("mmkd::dab_detr/kd-detr_dab-detr_r18_r50_50e_coco.py").model
    layers = cfg.decoder.num_layers
    rows = [dict(row.config) for row in ROWS if row.loss.startswith("KD-DETR")]
    for row in rows[1:]:
        row["loss_weight"] = layers * MODELS.build(dict(row)).loss_weight
    shared = [{**row, "place": "shared_queries"} for row in rows]
    assert list(cfg.distill.to_dict().values()) == shared
