"""What the pages say is run: configs are built, commands are parsed, and whole pages are followed.

A block that cannot be run here has ``<!-- not run: why -->`` before it. Blocks with a title are files of a
story: those pages are followed from an empty folder, with a smaller base and fewer images.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import pydoc
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any
from xml.sax.saxutils import escape

import pytest
import torch
import yaml
from mmdet.models.dense_heads import ATSSHead
from mmengine.config import Config
from mmengine.logging import MessageHub

from mmkd import functional, heads, outputs
from mmkd.compat import load_config
from mmkd.data import read_predictions
from mmkd.functional import features
from mmkd.heads.adapter import ADAPTERS
from mmkd.losses import split_shares
from mmkd.registry import MODELS, TEACHERS

from .conftest import ROOT, build, only_soak, repeats, tiny_atss
from .heads import test_contract
from .heads.cases import CASES, Case

PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
# Parsed as all are, and run in `make soak` alone.
LONG = (
    "mmkd-doctor my_teacher.py",
    "mmkd-doctor voc_kd.py",
    "mmkd-doctor kd_photos.py",
    "mmkd-train my_student.py",
    "mmkd-test my_kd.py --teacher",
    "mmkd-test voc_kd.py work_dirs/voc_kd/epoch_12.pth",
    "python autocast.py my_data/images/val/BloodImage_00007.jpg",
    "python tools/doctor.py configs/bccd/kd_auto.py",
    "python tools/train.py configs/bccd/student.py",
    "python tools/test.py configs/bccd/student.py work_dirs/student/epoch_5.pth",
    "python tools/test.py configs/bccd/kd_auto.py --teacher",
)
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\s*)?"
    r"^(?: {4})?```(?P<lang>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^(?: {4})?```",
    re.MULTILINE | re.DOTALL,
)
OTHERS = (
    "pip",
    "wandb",
    "make",
    ".",
    "mv",
    "git",
    "source",
    "pre-commit",
    "mkdocs",
    "docker",
    "CUDA_VISIBLE_DEVICES=3",
    "export",
)


@dataclass(frozen=True)
class Block:
    page: Path
    lang: str
    text: str
    title: str
    why: str


def blocks(page: Path) -> Iterator[Block]:
    for found in FENCE.finditer(page.read_text()):
        parts = {key: value or "" for key, value in found.groupdict().items()}
        yield Block(page, parts["lang"], dedent(parts["text"]), parts["title"], parts["why"])


def of_all(*langs: str) -> list[Any]:
    return [
        pytest.param(block, id=f"{page.name}-{index}")
        for page in PAGES
        for index, block in enumerate(blocks(page))
        if block.lang in langs and not block.why
    ]


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command; comments and what a shell does with them left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def entry_points() -> dict[str, str]:
    found = re.findall(r'"(mmkd-[a-z-]+)=mmkd\.cli\.main:(\w+)"', (ROOT / "setup.py").read_text())
    return {command: f"mmkd.cli.{tool}" for command, tool in found}


def tool_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The module behind a command of ours, and its arguments."""
    if words[0] == "mmkd" and len(words) > 1 and f"mmkd-{words[1]}" in entry_points():
        return entry_points()[f"mmkd-{words[1]}"], words[2:]
    if words[0] in entry_points():
        return entry_points()[words[0]], words[1:]
    if words[0] == "python" and len(words) > 1 and (found := re.fullmatch(r"tools/(\w+)\.py", words[1])):
        return f"mmkd.cli.{found[1]}", words[2:]
    return None


@pytest.mark.parametrize("block", of_all("", "bash", "console", "sh"))
def test_commands_are_understood(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    checked = 0
    for words in commands(block) if looks_like_commands(block) else ():
        if tool := tool_of(words):
            module, arguments = tool
            importlib.import_module(module).parse_args(arguments)
            for word in arguments:
                if re.match(r"(configs|data|docs)/", word) and "=" not in word:
                    assert (ROOT / word).exists(), f"{word} of: {' '.join(words)}"
        elif words[0] in ("python", ".venv/bin/python") and words[1].endswith(".py"):
            known = {inner.title for inner in blocks(block.page)}
            assert words[1] in known or (ROOT / words[1]).exists(), " ".join(words)
            options = [word for word in words if word.startswith("--")]
            text = (ROOT / words[1]).read_text() if words[1] not in known else ""
            assert all(option in text for option in options), " ".join(words)
        elif words[0] in ("python", ".venv/bin/python"):
            assert words[1] == "-m", " ".join(words)
        elif "/" in words[0] and not words[0].startswith("."):
            assert (ROOT / words[0]).exists(), " ".join(words)
        elif words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), " ".join(words)
        else:
            assert words[0] in OTHERS, f"not a command that this test knows: {' '.join(words)}"
        checked += 1
    assert checked or not looks_like_commands(block)


def looks_like_commands(block: Block) -> bool:
    """Blocks without a language are pictures, trees and output as well."""
    first = block.text.split(maxsplit=1)[0] if block.text.split() else ""
    ours = ("python", "pip", "make", "wandb", ".venv/bin/python")
    return block.lang in ("bash", "sh", "console") or first in ours or first.startswith(("mmkd-", "tools/"))


@pytest.mark.parametrize("block", of_all("python"))
def test_python_blocks(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ast.parse(block.text)
    programs = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    if block.title or any(isinstance(node, programs) for node in tree.body):
        compile(tree, str(block.page), "exec")  # a program, or a file of a story
        return
    cfg = Config.fromstring(block.text, ".py")
    model = cfg.get("model") or {}
    if "teacher" in cfg:
        model = {"type": "KDSingleStageDetector", "teacher": cfg.teacher}
    teacher = model.get("teacher")
    kinds = ("KDSingleStageDetector", "KDDetector")
    if model.get("type") in kinds and "…" not in block.text and "backbone" in model:
        teacher.checkpoint = None
        model.pop("inherit", None)  # what a teacher without weights has not
        shrunk(teacher)
        built = MODELS.build(model)
        assert set(built.distill) == set(model.distill)
    else:
        for loss in split_shares(model.get("distill") or {})[0].values():
            MODELS.build({key: value for key, value in loss.items() if key not in ("teacher", "place")})


@pytest.mark.parametrize("block", of_all("yaml"))
def test_yaml_blocks(block: Block) -> None:
    assert yaml.safe_load(block.text)


def shrunk(teacher: Any) -> None:
    """The zoo's teacher as a dict with a shallow backbone: it is the heads that are compared."""
    model = load_config(teacher.config).model
    if model.backbone.get("depth", 0) > 50:
        model.backbone.update({"type": "ResNet", "depth": 50})
        for key in ("groups", "base_width"):
            model.backbone.pop(key, None)
    teacher.config = model


def test_what_is_not_run_says_why() -> None:
    skipped = [(block.page.name, block.why.strip()) for page in PAGES for block in blocks(page) if block.why]
    known = ("installs", "minutes of training", "needs", "an outline")
    for page, why in skipped:
        print(f"{page}: {why}")
        assert why.startswith(known), f"{page}: {why}"
    assert len(skipped) < 12


# --- what the pages send their readers to


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        target, _, anchor = link.partition("#")
        if target.startswith("http"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), link
        headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, link


MADE_BY_USE = {"work_dirs", "weights", "site", "build"}
FOLDERS = {
    path.name for place in (ROOT, ROOT / "mmkd") for path in place.iterdir() if path.is_dir()
} - MADE_BY_USE
PLACES = (ROOT, ROOT / "mmkd", ROOT / "tests")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Below a folder of ours; with ``file::test`` the test as well, and names in mmkd by their module."""
    written = {block.title for block in blocks(page)}
    defined = re.findall(r"^ *class (\w+)", page.read_text(), re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", prose(page)):
        for word in code.split():
            name, _, test = word.partition("::")
            if re.fullmatch(r"\w+/[\w./*-]*", name) and name.split("/")[0] in FOLDERS and name not in written:
                found = [path for place in PLACES for path in place.glob(name)]
                assert found, f"{word} is not there"
                assert not test or f"def {test}(" in found[0].read_text(), word
            if re.fullmatch(r"mmkd(\.\w+)+", name) and name.rpartition(".")[2] not in defined:
                assert pydoc.locate(name), f"{name} is not there"


def test_the_tree_of_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tree = text[text.index("## The tree") : text.index("## Adding to it")]
    named = re.findall(r"^(\w[\w./]*) +\w", tree, re.MULTILINE)
    assert not [name for name in named if not (ROOT / name).exists()]
    packages = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("mmkd/*/__init__.py")}
    assert packages <= {name.rstrip("/") for name in named}


# --- troubleshooting.md


def error_texts() -> set[str]:
    """The first sentence of every error that a user can mend, with … for what differs."""
    texts = set()
    for path in (ROOT / "mmkd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and "remedy" in {keyword.arg for keyword in node.keywords}:
                for argument in node.args[:1]:
                    texts.add(sentence(argument))
    return texts


def sentence(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
        return re.sub(r"…(\.…)+", "…", "".join(parts))
    return "…"


def test_troubleshooting_quotes_errors_that_there_are() -> None:
    headings = re.findall(r"^### (.+)$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    texts = error_texts()
    assert len(headings) >= 25
    assert len(set(headings)) == len(headings)
    assert not [heading for heading in headings if heading not in texts], sorted(texts)


def test_the_api_page_has_every_public_name() -> None:
    import mmkd
    import mmkd.hooks
    import mmkd.losses

    page = (ROOT / "docs/api.md").read_text()
    names = [*mmkd.__all__, *mmkd.losses.registered_losses(), *mmkd.hooks.__all__]
    internal = {"__version__", "TrainingStopped"}
    assert not [name for name in names if name not in internal and f".{name}\n" not in page + "\n"]


# --- stories


class Story:
    """Follows the blocks of a page in a folder, with a smaller base and fewer images."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.said: list[str] = []
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(ROOT))

    def follow(self, page: str, options: Callable[[str, list[str]], list[str]]) -> None:
        for block in blocks(ROOT / "docs" / page):
            if block.why:
                continue
            if block.title:
                stock = "mmdet::atss/atss_r50_fpn_1x_coco.py"
                (self.folder / block.title).write_text(block.text.replace(stock, "./small_base.py"))
            elif block.lang == "bash":
                for words in commands(block):
                    self.run(words, options)

    def run(self, words: list[str], options: Callable[[str, list[str]], list[str]]) -> None:
        self.said.append(" ".join(words))
        if self.said[-1] in LONG and not repeats(0, 1):
            return
        if tool := tool_of(words):
            module, arguments = tool
            code = importlib.import_module(module).main([*arguments, *options(module, arguments)])
            allowed = (0, 1) if module.endswith("doctor") else (0,)  # a teacher of a few steps is no teacher
            assert code in allowed, f"{' '.join(words)} ended with {code}"
            for written in self.folder.glob("**/work_dirs/*/epoch_1.pth"):
                for last in ("epoch_5.pth", "epoch_12.pth", "epoch_56.pth"):
                    written.with_name(last).write_bytes(written.read_bytes())
        elif words[0] == "python":
            # Without mmkd: that is what the page promises.
            blocked = "import sys, runpy; sys.modules['mmkd'] = None; sys.argv = sys.argv[1:]; "
            blocked += "runpy.run_path(sys.argv[0], run_name='__main__')"
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", blocked, *words[1:]],
                cwd=self.folder, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        elif words[0] == "mv":
            done = subprocess.run(
                ["bash", "-c", " ".join(words)], cwd=self.folder, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr


def small_base(folder: Path) -> None:
    """A stand-in for the zoo's ATSS: the same config, small images, a thin head, one epoch."""
    cfg = load_config("mmdet::atss/atss_r50_fpn_1x_coco.py")
    cfg.model.neck.out_channels = cfg.model.bbox_head.in_channels = cfg.model.bbox_head.feat_channels = 64
    cfg.model.bbox_head.stacked_convs = 1
    for pipeline in (cfg.train_pipeline, cfg.train_dataloader.dataset.pipeline):
        pipeline[2].scale = (128, 96)
    for pipeline in (
        cfg.test_pipeline,
        *(cfg[f"{part}_dataloader"].dataset.pipeline for part in ("val", "test")),
    ):
        pipeline[1].scale = (128, 96)
    cfg.dump(folder / "small_base.py")


def as_voc(coco: Path, voc: Path, count: int) -> None:
    """Some images of a set in COCO's form, in that of VOC."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    for part in ("train", "val"):
        content = json.loads((coco / f"annotations/{part}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        chosen = content["images"][:count]
        for image in chosen:
            stem = Path(image["file_name"]).stem
            (voc / f"JPEGImages/{stem}.jpg").write_bytes(
                (coco / f"images/{part}/{image['file_name']}").read_bytes()
            )
            objects = ""
            for one in content["annotations"]:
                if one["image_id"] == image["id"]:
                    x, y, w, h = (round(value) for value in one["bbox"])
                    corners = (
                        f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
                    )
                    name = escape(names[one["category_id"]])
                    objects += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
            size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
            (voc / f"Annotations/{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        listed = "\n".join(Path(image["file_name"]).stem for image in chosen)
        (voc / f"ImageSets/Main/{part}.txt").write_text(listed + "\n")


@only_soak
def test_your_own_data_then_deploying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_data").symlink_to(ROOT / "data/bccd")
    as_voc(ROOT / "data/bccd", tmp_path / "my_voc", 4)
    small_base(tmp_path)
    story = Story(tmp_path, monkeypatch)

    def options(module: str, arguments: list[str]) -> list[str]:
        few = [f"{part}_dataloader.{key}" for part in ("train", "val", "test")
               for key in ("dataset.indices=4", "num_workers=0", "persistent_workers=False")]  # fmt: skip
        small = ["--cfg-options", "model.backbone.init_cfg=None", "load_from=None", *few]
        return {
            "mmkd.cli.train": [*small, "train_cfg.max_epochs=1"],
            "mmkd.cli.test": small,
            "mmkd.cli.doctor": ["--images", "1", *small],
        }.get(module, [])

    story.follow("own-data.md", options)
    assert sum(command.startswith("mmkd-train") for command in story.said) == 7
    story.follow("deploy.md", options)
    assert [path.name for path in tmp_path.glob("my-student-*.pth")]
    assert "python detect.py my_data/images/val/BloodImage_00007.jpg" in story.said


@pytest.mark.slow
def test_any_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    content = json.loads((ROOT / "data/bccd/annotations/train.json").read_text())
    for one in content["annotations"]:
        one["score"] = 0.9
    (tmp_path / "teacher.json").write_text(json.dumps(content))
    story = Story(tmp_path, monkeypatch)
    monkeypatch.syspath_prepend(str(tmp_path))

    def options(module: str, arguments: list[str]) -> list[str]:
        few = [f"{part}_dataloader.{key}" for part in ("train", "val")
               for key in ("dataset.indices=4", "num_workers=0", "persistent_workers=False")]  # fmt: skip
        return ["--cfg-options", *few, "train_cfg.max_epochs=1", "default_hooks.logger.interval=1"]

    story.follow("any-teacher.md", options)
    assert len(story.said) == 3
    assert len(read_predictions("predictions.json")) == 4
    (writing,) = [x.text for x in blocks(ROOT / "docs/any-teacher.md") if "PredictionsWriter" in x.text]
    exec(writing, {})
    assert read_predictions("theirs.json").names == ["images/1.jpg", "images/2.jpg"]
    for name in ("kd_from_file", "kd_from_function"):
        (log,) = (tmp_path / f"work_dirs/{name}").rglob("*.log")
        assert "loss_kd_boxes: " in log.read_text()


@pytest.mark.slow
def test_images_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "my_photos").mkdir()
    for path in sorted((ROOT / "data/bccd/images/train").iterdir())[:12]:
        (tmp_path / "my_photos" / path.name).symlink_to(path)
    story = Story(tmp_path, monkeypatch)

    def options(module: str, arguments: list[str]) -> list[str]:
        parts = ("train", "val") if "only_photos.py" not in arguments else ("train",)
        few = [f"{part}_dataloader.{key}" for part in parts
               for key in ("dataset.indices=4", "num_workers=0", "persistent_workers=False")]  # fmt: skip
        doctor = ["--images", "2"] if module.endswith("doctor") else []
        return [*doctor, "--cfg-options", *few, "train_cfg.max_epochs=1", "default_hooks.logger.interval=1"]

    story.follow("unlabelled.md", options)
    assert len(story.said) == 4
    for name, labels in (("kd_photos", True), ("kd_two_views", True), ("only_photos", False)):
        (log,) = (tmp_path / f"work_dirs/{name}").rglob("*.log")
        first = re.findall(r"loss_cls: ([\d.]+) .*loss_kd_cls: ([\d.]+)", log.read_text())[0]
        assert (float(first[0]) > 0) == labels, name
        assert float(first[1]) > 0, name


@pytest.mark.slow
@pytest.mark.soak
def test_the_quick_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    story = Story(tmp_path, monkeypatch)

    def options(module: str, arguments: list[str]) -> list[str]:
        few = [f"{part}_dataloader.{key}" for part in ("train", "val", "test")
               for key in ("dataset.indices=4", "num_workers=0", "persistent_workers=False")]  # fmt: skip
        return {
            "mmkd.cli.train": ["--cfg-options", *few, "train_cfg.max_epochs=1"],
            "mmkd.cli.test": ["--cfg-options", *few],
            "mmkd.cli.doctor": ["--images", "1", "--cfg-options", *few],
        }.get(module, [])

    story.follow("quickstart.md", options)
    assert (tmp_path / "student.pth").stat().st_size < (
        tmp_path / "work_dirs/kd_auto/epoch_5.pth"
    ).stat().st_size


@pytest.mark.parametrize(
    ("code", "test", "registry", "name"),
    [
        ("losses/neck_mse.py", "losses/test_neck_mse.py", MODELS.module_dict, "NeckMSELoss"),
        ("teachers/constant.py", "teachers/test_constant.py", TEACHERS.module_dict, "ConstantTeacher"),
        ("outputs/tags.py", "outputs/test_tags.py", outputs.PLACES, "tags"),
    ],
)
def test_what_contributing_adds(
    code: str, test: str, registry: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class and its tests as they are written there."""
    files = {block.title: block.text for block in blocks(ROOT / "CONTRIBUTING.md")}
    if code == "losses/neck_mse.py":
        add_function("neck_mse", monkeypatch)
    module = ModuleType(f"mmkd.{code.removesuffix('.py').replace('/', '.')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(files[f"mmkd/{code}"], code, "exec"), vars(module))
    try:
        tests: dict[str, Any] = {"__package__": f"tests.{Path(test).parent}", "__name__": "contributing"}
        exec(compile(files[f"tests/{test}"], test, "exec"), tests)
        found = [tests[name] for name in tests if name.startswith("test_")]
        assert len(found) == 2
        for one in found:
            one()
    finally:
        registry.pop(name)


def add_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function as it is written in CONTRIBUTING, where it says, and its example."""
    texts = [block.text for block in blocks(ROOT / "CONTRIBUTING.md") if f"def {name}(" in block.text]
    monkeypatch.setattr(features, name, None, raising=False)
    exec(compile(texts[0], name, "exec"), vars(features))
    monkeypatch.setattr(functional, name, getattr(features, name), raising=False)
    (example,) = doctest.DocTestFinder().find(getattr(features, name), name, module=features)
    assert doctest.DocTestRunner().run(example).failed == 0
    assert example.examples


def test_the_heads_of_contributing() -> None:
    """The one that is served as it is passes the contract; the other is read by the adapter."""
    texts = [block.text for block in blocks(ROOT / "CONTRIBUTING.md")]
    (case,) = eval(next(text for text in texts if text.startswith("(Case(")), {"Case": Case})
    assert case.head not in {known.head for known in CASES}, "take another head as the example"
    MessageHub.get_current_instance().update_info("epoch", 0)
    ran = 0
    for name, test in vars(test_contract).items():
        if name.startswith("test_") and inspect.getfullargspec(test).args == ["case"]:
            test(case)
            ran += 1
    assert ran > 4

    class MyHead(ATSSHead):
        pass

    adapter = next(text for text in texts if "@register_adapter(MyHead)" in text)
    known = dict(ADAPTERS)
    try:
        exec(adapter, {"MyHead": MyHead, **vars(heads)})
        model = build(tiny_atss(bbox_head__type=MyHead)).eval()
        feats = model.extract_feat(torch.zeros(1, 3, 64, 64))
        raw = model.bbox_head(feats)
        outputs = heads.adapter_for(model.bbox_head).outputs(
            model.bbox_head, feats, raw, frozenset({"extra"})
        )
        assert list(outputs.extra) == ["iou"]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs.extra["iou"], raw[2]))
    finally:
        ADAPTERS.clear()
        ADAPTERS.update(known)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "README.md"], ids=lambda page: page.name
)
def test_a_page_begins_with_what_it_is_for(page: Path) -> None:
    title, promise = page.read_text().split("\n\n")[:2]
    assert title.startswith("# ")
    assert promise.startswith("After this page you ")


# --- the built site


@pytest.mark.slow
def test_the_site(tmp_path: Path) -> None:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert len(pages) > 20
    for name, html in pages.items():
        assert not re.findall(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//[^"]*"', html), name
        assert 'src="iframe-worker.js"' in html or name == "404.html", f"{name}: no search from a folder"
        assert not re.findall(r'<link[^>]+rel="stylesheet"[^>]+href="(?:https?:)?//[^"]*"', html), name
    assert "doctor" in (tmp_path / "search/search_index.js").read_text()
    assert "<math" in pages["api.html"]
    assert "&gt;&gt;&gt; " not in re.sub(r"<pre.*?</pre>", "", pages["api.html"], flags=re.DOTALL)
    assert not [word for word in (":math:", ".. math::", ":func:") if word in pages["api.html"]]
