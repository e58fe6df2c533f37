"""The contract tests do more in `make soak`."""

from __future__ import annotations

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark them in one place: there their gradients are checked at every element."""
    if item.name.startswith("test_contract"):
        item.add_marker(pytest.mark.soak)
