"""With the options of docs/parity.md our losses have the numbers of the published code."""

from __future__ import annotations

import math

import pytest

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
