from __future__ import annotations

import html
import re

from mmkd.doctor import Finding, Section, as_data, count, html_page, page

GOOD = Section("first", [Finding("ok", "a", "well")], 1.25)
BAD = Section("second", [Finding("warning", "b", "hm", "look"), Finding("error", "c", "no " * 60, "mend it")])


def test_page() -> None:
    text = page("title", [GOOD, BAD], width=80)
    lines = text.splitlines()
    assert lines[0] == "title"
    assert "first (1.2 s)" in lines
    assert "  ok       a                     well" in lines
    assert all(len(line) <= 80 for line in lines)
    assert "                                 → mend it" in lines
    assert lines[-1] == "1 error, 1 warning: fix the errors before training"
    assert "\033" not in text
    coloured = page("title", [GOOD, BAD], colour=True, width=80)
    assert "\033[31merror" in coloured
    assert len(coloured) == len(text) + 3 * len("\033[31m\033[0m")


def test_verdict() -> None:
    assert page("", [GOOD]).endswith("0 errors, 0 warnings: ready to train")
    warned = Section("", [BAD.findings[0]] * 2)
    assert page("", [warned]).endswith("0 errors, 2 warnings: ready to train; read the warnings first")


def test_as_data() -> None:
    data = as_data("title", [GOOD, BAD])
    assert (data["errors"], data["warnings"]) == (1, 1) == (count([BAD], "error"), count([BAD], "warning"))
    assert data["sections"][0]["findings"] == [{"level": "ok", "what": "a", "found": "well", "remedy": ""}]


def test_html_page() -> None:
    text = html_page("doctor: <b>.py", [GOOD, BAD])
    assert not re.search(r"""(src|href)=|url\(|<b>\.py""", text), "it needs no other file, and names are text"
    body = re.sub(r"<style>.*?</style>", " ", text, flags=re.S)
    words = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())
    assert "verdict fix the errors before training errors 1" in words
    assert "warnings 1 may spoil it passed 1 checks" in words
    to_fix = words[words.index("To fix") : words.index("first 1.2 s")]
    assert to_fix.startswith("To fix error c no")
    assert to_fix.endswith("mend it warning b hm look ")
    assert words.endswith("error c " + "no " * 60 + "mend it")
    assert "To fix" not in html_page("", [GOOD])
