from __future__ import annotations

from typing import get_args

from mmkd.cli import convert, parsers
from mmkd.compare.plan import SPLITS
from mmkd.export import Pixels
from mmkd.project.dataset import KINDS


def test_choices_are_those_of_the_tools() -> None:
    assert parsers.SPLITS == SPLITS
    assert parsers.FORMATS == KINDS
    assert tuple(convert.PREFIXES) == parsers.PARTS
    assert get_args(Pixels) == parsers.PIXELS


def test_overrides_are_read_as_mmengine_does() -> None:
    args = parsers.train().parse_args(["c.py", "--cfg-options", "a.b=1", "c=[1,2]", "d=x"])
    assert args.cfg_options == {"a.b": 1, "c": [1, 2], "d": "x"}
