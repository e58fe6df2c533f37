from __future__ import annotations

import ast

from mmengine.config import Config

from mmkd.project.code import Code, code, comment


def test_code_is_read_as_what_it_was() -> None:
    value = {"a": [1, 2.5], "b": {"c": ("x",), "d": None, "e": True}, "f": "it's"}
    long = {"first": "a" * 50, "second": {"third": "b" * 50, "fourth": ["c" * 40, "d" * 40]}}
    cfg = Config.fromstring(
        f"short = {code(value)}\nlong = {code(long)}\nname = {code(Code('short'))}", ".py"
    )
    assert cfg.short == value
    assert cfg.long == long
    assert cfg.name == value
    assert code({"a": 1}) == "dict(a=1)"
    renamed = {"bbox_head.conv_cls": "bbox_head.atss_cls", "class": {"a b": 1}, 3: "x" * 80}
    assert ast.literal_eval(code(renamed)) == renamed


def test_a_long_comment_is_wrapped() -> None:
    lines = comment("word " * 30)
    assert len(lines) == 2
    assert all(line.startswith("# word") and len(line) <= 100 for line in lines)
